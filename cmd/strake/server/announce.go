package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/controlplane/pki"
)

// How kubelets are called.
const (
	announceEvery  = 10 * time.Second
	announceWithin = 3 * time.Second
	announceAtOnce = 16
)

// announce calls the kubelets of all nodes once, and from then on of those that are not heard of, until ctx ends: this machine may have another
// address than they know. By the call they learn it, and by its certificate that they may believe it.
func announce(ctx context.Context, cfg Config, client kubernetes.Interface) {
	for all := true; ; all = false {
		nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err == nil {
			err = callKubelets(ctx, cfg.PKI, nodes.Items, func(n *corev1.Node) bool { return n.Name != cfg.NodeName && (all || !isReady(n)) })
		}
		if err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Nodes are not told where the API server is")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(announceEvery):
		}
	}
}

func isReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func callKubelets(ctx context.Context, f pki.Files, nodes []corev1.Node, which func(*corev1.Node) bool) error {
	ca, err := os.ReadFile(f.CA().Cert)
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(f.APIServerKubeletClient().Cert, f.APIServerKubeletClient().Key)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	caller := &http.Client{Timeout: announceWithin, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{pair}},
	}, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a kubelet must not send this certificate on elsewhere
	}}
	var g errgroup.Group
	g.SetLimit(announceAtOnce)
	for i := range nodes {
		n := &nodes[i]
		if !which(n) {
			continue
		}
		for _, a := range n.Status.Addresses {
			if a.Type != corev1.NodeInternalIP {
				continue
			}
			url := "https://" + net.JoinHostPort(a.Address, strconv.Itoa(int(n.Status.DaemonEndpoints.KubeletEndpoint.Port))) + "/healthz"
			g.Go(func() error {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
				if err != nil {
					return nil // no address, then
				}
				resp, err := caller.Do(req)
				if err != nil {
					klog.V(2).InfoS("A kubelet was not reached", "node", n.Name, "err", err)
					return nil
				}
				return resp.Body.Close()
			})
		}
	}
	return g.Wait()
}
