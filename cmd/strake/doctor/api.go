package doctor

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/strake-io/strake/cmd/strake/containerd"
)

// certWarn is how long before its end a certificate is told: it should have been renewed by then.
const certWarn = 7 * 24 * time.Hour

func (e *examination) api(ctx context.Context, g group, o *objects, listErr error) {
	if listErr != nil {
		g.fail("API server", "`strake status` tells whether the server runs; its log is "+e.Layout.Log("server"), "%s: %v", e.url, listErr)
	} else {
		g.ok("API server", "%s answers", e.url)
		g.judgeNode(o.nodes, e.Name)
	}
	if !e.ProxyOnly {
		e.runtime(ctx, g)
	}
	e.certificates(g)
}

func (g group) judgeNode(nodes []corev1.Node, name string) {
	i := slices.IndexFunc(nodes, func(n corev1.Node) bool { return n.Name == name })
	if i < 0 {
		g.fail("node object", "the agent registers the node when it starts: is it running?", "there is no node %s", name)
		return
	}
	for _, c := range nodes[i].Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			g.ok("node object", "%s is Ready", name)
			return
		} else if c.Type == corev1.NodeReady {
			g.fail("node object", "`strake kubectl describe node "+name+"`", "%s is not Ready: %s", name, c.Message)
			return
		}
	}
	g.fail("node object", "is the agent running?", "%s has no Ready condition", name)
}

func (e *examination) runtime(ctx context.Context, g group) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c, err := containerd.Connect(ctx, e.Layout)
	if err != nil {
		g.fail("containerd", "its log is "+e.Layout.Log("containerd"), "%v", err)
		return
	}
	defer c.Close()
	v, err := c.Version(ctx)
	if err != nil {
		g.fail("containerd", "its log is "+e.Layout.Log("containerd"), "%v", err)
		return
	}
	g.ok("containerd", "%s answers", v)
}

// certificates looks at every certificate of the node, in files and in kubeconfigs.
func (e *examination) certificates(g group) {
	found := map[string]time.Time{}
	for _, root := range e.Certificates {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err != nil || info.Size() > 1<<20 {
				return nil // it went meanwhile, or is no certificate
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if end, ok := firstEnd(data); ok {
				found[path] = end
			}
			return nil
		})
		if err != nil && !os.IsNotExist(err) {
			g.unknown("certificates", err, "")
			return
		}
	}
	g.judgeCertificates(found, time.Now())
}

// firstEnd is when the first certificate of a PEM file or of a kubeconfig ends.
func firstEnd(data []byte) (end time.Time, ok bool) {
	note := func(pemData []byte) {
		for block, rest := pem.Decode(pemData); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "CERTIFICATE" {
				continue
			}
			if c, err := x509.ParseCertificate(block.Bytes); err == nil && (!ok || c.NotAfter.Before(end)) {
				end, ok = c.NotAfter, true
			}
		}
	}
	note(data)
	if !ok && strings.Contains(string(data), "client-certificate-data") {
		if c, err := clientcmd.Load(data); err == nil {
			for _, a := range c.AuthInfos {
				note(a.ClientCertificateData)
			}
		}
	}
	return end, ok
}

func (g group) judgeCertificates(ends map[string]time.Time, now time.Time) {
	var expired, soon []string
	var first time.Time
	for path, end := range ends {
		if first.IsZero() || end.Before(first) {
			first = end
		}
		line := fmt.Sprintf("%s (%s)", path, end.UTC().Format(time.DateTime))
		switch {
		case end.Before(now):
			expired = append(expired, line)
		case end.Before(now.Add(certWarn)):
			soon = append(soon, line)
		}
	}
	slices.Sort(expired)
	slices.Sort(soon)
	const hint = "restart the server and the agent: they renew what ends soon"
	switch {
	case len(expired) > 0:
		g.fail("certificates", hint, "expired: %s", shorten(expired))
	case len(soon) > 0:
		g.warn("certificates", hint, "about to expire: %s", shorten(soon))
	case len(ends) == 0:
		g.ok("certificates", "none here")
	default:
		g.ok("certificates", "%d, the first ends %s", len(ends), first.UTC().Format(time.DateOnly))
	}
}
