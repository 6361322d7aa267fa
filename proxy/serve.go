package proxy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// Ports where kube-proxy is asked how it is, and for its metrics.
const (
	HealthzPort = 10256
	MetricsPort = 10249
)

// BindAddrs reads an address to listen on: IP:port, IP (with the usual port), or :port for the addresses that are usual; empty for what is
// usual altogether, and "none" for nothing.
func BindAddrs(text string, usual []netip.Addr, port uint16) ([]netip.AddrPort, error) {
	at := func(addrs []netip.Addr, port uint16) []netip.AddrPort {
		var out []netip.AddrPort
		for _, a := range addrs {
			out = append(out, netip.AddrPortFrom(a, port))
		}
		return out
	}
	if text == "none" {
		return nil, nil
	}
	if text == "" {
		return at(usual, port), nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return at([]netip.Addr{a}, port), nil
	}
	host, number, err := net.SplitHostPort(text)
	if err != nil {
		return nil, fmt.Errorf("%q is no address to listen on, such as 192.0.2.1:%d, :%d or none", text, port, port)
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return nil, fmt.Errorf("%q has no port from 1 to 65535", text)
	}
	if host == "" {
		return at(usual, uint16(n)), nil
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return nil, fmt.Errorf("%q has no IP address", text)
	}
	return at([]netip.Addr{a}, uint16(n)), nil
}

// Serve answers at each address until ctx ends. An address that can't be had, because it is not there yet or another process has the
// port, is tried again: no connection depends on these answers.
func Serve(ctx context.Context, at []netip.AddrPort, h http.Handler) {
	var wg sync.WaitGroup
	for _, a := range at {
		wg.Go(func() {
			for told := false; ctx.Err() == nil; {
				l, err := listen(a)
				if err == nil {
					s := serve(l, h)
					<-ctx.Done()
					s.Close()
					return
				}
				if !told {
					klog.ErrorS(err, "Can't listen yet, trying again", "address", a)
					told = true
				}
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		})
	}
	wg.Wait()
}
