// Package plugins holds the scheduler's default plugins, one file each. They
// know nothing of the scheduler but the published framework
// (k8s.io/kube-scheduler/framework); reasons are worded as users know them.
package plugins
