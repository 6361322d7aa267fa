// Package pki keeps the certificates, keys and kubeconfigs of one server.
//
// Its one idea: Ensure is level-triggered. It looks at what is on disk, makes
// what is missing, renews what expires soon or no longer names the right
// hosts, and leaves everything else alone, so that it may run at every start.
// Certificate authorities and the ServiceAccount key are made once and never
// replaced: everything that was handed out hangs on them.
//
// Files are PEM. Private keys and kubeconfigs have mode 0600, the folder 0700.
package pki
