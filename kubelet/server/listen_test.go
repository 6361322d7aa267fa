package server

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/fake"
)

// The kubelet answers on all of the node's addresses, with a certificate that may be another tomorrow.
func TestRunServesBothFamilies(t *testing.T) {
	certified := serve(t).srv.TLS.Certificates[0]
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certified.Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	l.Close()
	addrs := []netip.AddrPort{netip.AddrPortFrom(netip.IPv6Loopback(), port), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)}
	asked := make(chan struct{}, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{
			Addrs: addrs, ClientCAFile: ca, NodeName: "node-1", Client: fake.NewClientset(), Stats: figures{},
			Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				asked <- struct{}{}
				return &certified, nil
			},
		})
	}()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	for _, a := range addrs {
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			resp, err := client.Get("https://" + a.String() + "/healthz")
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode != http.StatusUnauthorized {
					t.Errorf("a stranger at %s gets %s", a, resp.Status)
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		<-asked
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// An address that is another's is an error, not half a kubelet.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addrs = []netip.AddrPort{netip.AddrPortFrom(netip.IPv6Loopback(), 0), taken.Addr().(*net.TCPAddr).AddrPort()}
	if err := Run(t.Context(), Config{Addrs: addrs, ClientCAFile: ca, Client: fake.NewClientset(), Stats: figures{}}); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("with an address that is taken: %v", err)
	}
}
