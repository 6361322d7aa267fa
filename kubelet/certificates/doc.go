// Package certificates gets a node its certificates and keeps them fresh.
//
// A node has two identities towards the API server and one towards its
// clients: the kubelet's (system:node:NAME, group system:nodes), the node
// network's (system:strake-agent:NAME, group system:strake-agents), and the
// certificate that the kubelet serves with. The key of each is made here and
// never leaves the node; what is signed is asked for with a
// CertificateSigningRequest.
//
// Bootstrap turns a bootstrap token and the hash of the cluster's CA into the
// two client certificates. Its one idea is that each step leaves a file behind,
// so that a Bootstrap which was killed anywhere goes on where it was, and one
// with nothing left to do does nothing, without a token. Open and Run work from
// those files alone: they are what is left after a reboot.
//
// Certificates lie in Config.Dir, each in one PEM file with its key (0600):
// NAME-current.pem is a symlink to the one in use, as client-go's certificate
// store keeps it.
package certificates
