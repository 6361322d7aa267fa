package certificates

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	nodesGroup  = "system:nodes"
	nodePrefix  = "system:node:"
	agentsGroup = "system:strake-agents"
	agentPrefix = "system:strake-agent:"
)

// purpose is what a node asks a certificate for.
type purpose int

const (
	unknown       purpose = iota
	kubeletClient         // with which the kubelet of a node reaches the API server
	agentClient           // with which the network of a node does
	kubeletServer         // with which the kubelet serves
)

// recognize tells what a request is for and the node that it names. Whether the one who asks may have it is not looked at
// here. A request that is not just so is none of a node's: an error says what is different.
func recognize(c *certificatesv1.CertificateSigningRequest) (purpose, string, *x509.CertificateRequest, error) {
	r, err := parse(c.Spec.Request)
	if err != nil {
		return unknown, "", nil, err
	}
	var p purpose
	var group, prefix string
	usage := certificatesv1.UsageClientAuth
	switch c.Spec.SignerName {
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		p, group, prefix = kubeletClient, nodesGroup, nodePrefix
	case certificatesv1.KubeAPIServerClientSignerName:
		p, group, prefix = agentClient, agentsGroup, agentPrefix
	case certificatesv1.KubeletServingSignerName:
		p, group, prefix, usage = kubeletServer, nodesGroup, nodePrefix, certificatesv1.UsageServerAuth
	default:
		return unknown, "", r, fmt.Errorf("signer %s is not for nodes", c.Spec.SignerName)
	}
	node, ok := strings.CutPrefix(r.Subject.CommonName, prefix)
	if !ok || len(validation.IsDNS1123Subdomain(node)) > 0 {
		return unknown, "", r, fmt.Errorf("common name %q is not %s and a node's name", r.Subject.CommonName, prefix)
	}
	if !slices.Equal(r.Subject.Organization, []string{group}) {
		return unknown, "", r, fmt.Errorf("organization %q is not [%s]", r.Subject.Organization, group)
	}
	if len(r.EmailAddresses) > 0 || len(r.URIs) > 0 {
		return unknown, "", r, errors.New("it has e-mail addresses or URIs")
	}
	switch names := len(r.DNSNames) + len(r.IPAddresses); {
	case p != kubeletServer && names > 0:
		return unknown, "", r, errors.New("a client certificate has no names or addresses")
	case p == kubeletServer && names == 0:
		return unknown, "", r, errors.New("a serving certificate needs a name or an address")
	}
	want := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, usage}
	have := slices.DeleteFunc(slices.Clone(c.Spec.Usages), func(u certificatesv1.KeyUsage) bool {
		return u == certificatesv1.UsageKeyEncipherment // what RSA keys want besides
	})
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(have, want) {
		return unknown, "", r, fmt.Errorf("usages %q are not %q", c.Spec.Usages, want)
	}
	return p, node, r, nil
}

func parse(data []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("no PEM block of type CERTIFICATE REQUEST")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = r.CheckSignature()
	}
	return r, err
}

// isNode tells whether the one who asks is the kubelet of this node.
func isNode(c *certificatesv1.CertificateSigningRequest, node string) bool {
	return c.Spec.Username == nodePrefix+node && slices.Contains(c.Spec.Groups, nodesGroup)
}

// namesOnly tells whether all that a request to serve names are names and addresses of this node; if not, the first that isn't.
func namesOnly(r *x509.CertificateRequest, n *corev1.Node) (string, bool) {
	known := map[string]bool{n.Name: true}
	for _, a := range n.Status.Addresses {
		known[a.Address] = true
	}
	if host := n.Labels[corev1.LabelHostname]; host != "" {
		known[host] = true
	}
	for _, name := range r.DNSNames {
		if !known[name] {
			return name, false
		}
	}
	for _, ip := range r.IPAddresses {
		if !known[ip.String()] {
			return ip.String(), false
		}
	}
	return "", true
}
