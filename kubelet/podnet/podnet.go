// Package podnet writes what a pod knows of names: its resolv.conf, its
// hostname and its hosts file.
package podnet

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	maxSearch      = 32   // search paths, as the API allows
	maxSearchChars = 2048 // characters of all of them
	maxHostname    = 63
)

// Config is what pods of one node share.
type Config struct {
	ClusterDNS    []string
	ClusterDomain string
	ResolvConf    string // the node's resolv.conf
}

// resolv is the content of a resolv.conf.
type resolv struct{ servers, search, options []string }

// parseResolvConf reads a resolv.conf (resolv.conf(5)); what it does not know it leaves out.
func parseResolvConf(data []byte) resolv {
	var r resolv
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		line := sc.Text()
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			r.servers = append(r.servers, f[1])
		case "search":
			r.search = nil
			for _, s := range f[1:] {
				if s != "." { // the root itself is one that may be searched
					s = strings.TrimSuffix(s, ".")
				}
				if s != "" {
					r.search = append(r.search, s)
				}
			}
		case "options":
			r.options = append(r.options, f[1:]...)
		}
	}
	return r
}

// DNSConfig is the pod's resolv.conf by its dnsPolicy and dnsConfig.
func (c Config) DNSConfig(pod *corev1.Pod) (*runtimeapi.DNSConfig, error) {
	var node resolv
	data, err := os.ReadFile(c.ResolvConf)
	if err != nil && c.ResolvConf != "" {
		return nil, fmt.Errorf("the node's resolv.conf: %w", err)
	}
	node = parseResolvConf(data)
	var r resolv
	cluster := pod.Spec.DNSPolicy == corev1.DNSClusterFirstWithHostNet || pod.Spec.DNSPolicy == corev1.DNSClusterFirst && !pod.Spec.HostNetwork
	switch {
	case pod.Spec.DNSPolicy == corev1.DNSNone:
	case cluster && len(c.ClusterDNS) > 0:
		r.servers = slices.Clone(c.ClusterDNS)
		svc := "svc." + c.ClusterDomain
		r.search = append([]string{pod.Namespace + "." + svc, svc, c.ClusterDomain}, node.search...)
		r.options = []string{"ndots:5"}
	default:
		r = node
	}
	if d := pod.Spec.DNSConfig; d != nil {
		r.servers = append(r.servers, d.Nameservers...)
		r.search = append(r.search, d.Searches...)
		for _, o := range d.Options {
			text := o.Name
			if o.Value != nil {
				text += ":" + *o.Value
			}
			// The pod's own value of an option replaces the one that was there.
			r.options = slices.DeleteFunc(r.options, func(s string) bool { n, _, _ := strings.Cut(s, ":"); return n == o.Name })
			r.options = append(r.options, text)
		}
	}
	r.servers, r.search = unique(r.servers), unique(r.search)
	if len(r.servers) > 3 {
		r.servers = r.servers[:3] // MAXNS of resolv.conf(5)
	}
	return &runtimeapi.DNSConfig{Servers: r.servers, Searches: limitSearch(r.search), Options: r.options}, nil
}

func unique(l []string) []string {
	var out []string
	for _, s := range l {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func limitSearch(l []string) []string {
	if len(l) > maxSearch {
		l = l[:maxSearch]
	}
	for len(strings.Join(l, " ")) > maxSearchChars {
		l = l[:len(l)-1]
	}
	return l
}

// maxKernelName is the longest host name that Linux takes (__NEW_UTS_LEN).
const maxKernelName = 64

// KernelHostname is the host name that the pod's processes see: the short one, or the whole with setHostnameAsFQDN, which may be too long.
// Pods of the host's network have the node's.
func (c Config) KernelHostname(pod *corev1.Pod) (string, error) {
	if pod.Spec.HostNetwork {
		return "", nil
	}
	host, domain := c.Hostname(pod)
	if as := pod.Spec.SetHostnameAsFQDN; as != nil && *as && domain != "" {
		host += "." + domain
	}
	if len(host) > maxKernelName {
		return "", fmt.Errorf("the pod's host name %s has %d characters, and the kernel takes %d: shorten its hostname or subdomain, or leave setHostnameAsFQDN out", host, len(host), maxKernelName)
	}
	return host, nil
}

// Hostname is the pod's short host name, and its domain if it has a subdomain. A hostnameOverride is all that there is.
func (c Config) Hostname(pod *corev1.Pod) (host, domain string) {
	if o := pod.Spec.HostnameOverride; o != nil && *o != "" {
		return *o, ""
	}
	host = pod.Spec.Hostname
	if host == "" {
		host = pod.Name
		if len(host) > maxHostname {
			host = strings.TrimRight(host[:maxHostname], "-.")
		}
	}
	if pod.Spec.Subdomain != "" {
		domain = strings.Join([]string{pod.Spec.Subdomain, pod.Namespace, "svc", c.ClusterDomain}, ".")
	}
	return host, domain
}

// HostsFile writes the pod's /etc/hosts into dir and returns its path. Pods of the host's network see the node's.
func (c Config) HostsFile(pod *corev1.Pod, podIPs []string, dir string) (string, error) {
	var b bytes.Buffer
	if pod.Spec.HostNetwork {
		data, err := os.ReadFile("/etc/hosts")
		if err != nil {
			return "", fmt.Errorf("hosts file: %w", err)
		}
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(data)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		host, domain := c.Hostname(pod)
		for _, ip := range podIPs {
			if domain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, host, domain, host)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, host)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	path := filepath.Join(dir, "etc-hosts")
	// The file is bind-mounted into containers: it is written in place, not replaced.
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return "", fmt.Errorf("hosts file: %w", err)
	}
	return path, nil
}
