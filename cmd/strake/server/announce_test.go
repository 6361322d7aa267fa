package server

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/strake-io/strake/controlplane/pki"
)

// A kubelet that is called can't send the API server, with the certificate by which all kubelets obey it, on to somewhere else.
func TestCallsFollowNoRedirect(t *testing.T) {
	files, err := pki.Ensure(pki.Config{
		Dir: t.TempDir(), ServerAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, ServiceIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Zone: "cluster.local", Hostname: "cp", Server: "https://192.0.2.1:6443",
	})
	if err != nil {
		t.Fatal(err)
	}
	// The API server's own certificate is good for the loopback address, too.
	cert, err := tls.LoadX509KeyPair(files.APIServer().Cert, files.APIServer().Key)
	if err != nil {
		t.Fatal(err)
	}
	serve := func(h http.HandlerFunc) *url.URL {
		s := httptest.NewUnstartedServer(h)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
		s.StartTLS()
		t.Cleanup(s.Close)
		at, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	var called, elsewhere atomic.Int32
	to := serve(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) })
	kubelet := serve(func(w http.ResponseWriter, r *http.Request) {
		called.Add(1)
		http.Redirect(w, r, to.String(), http.StatusTemporaryRedirect)
	})
	port, err := strconv.ParseInt(kubelet.Port(), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	var n corev1.Node
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: kubelet.Hostname()}}
	n.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(port)
	if err := callKubelets(t.Context(), files, []corev1.Node{n}, func(*corev1.Node) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if called.Load() != 1 || elsewhere.Load() != 0 {
		t.Errorf("the kubelet was called %d times, another server %d times", called.Load(), elsewhere.Load())
	}
}
