package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/tests/podnet"
)

const packetRate = 10_000 // a second

// agentRestart kills the process that drives a node's network and starts it anew, again and again, while packets flow.
func (b *bench) agentRestart(ctx context.Context) (err error) {
	l, err := podnet.New(1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := l.Start(); err != nil {
		return err
	}
	n := l.Nodes[0]
	pods, err := ourPods(n, n)
	if err != nil {
		return err
	}
	fd, server, err := datagrams(pods.server, pods.addr)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// The NodePort leads to the server, by what a restarted process finds desired.
	const nodePort = 30080
	if err := n.Stop(); err != nil {
		return err
	}
	n.LoadBalancers = []bpf.LoadBalancer{{Owner: "svc", Name: "default/svc", Protocol: unix.IPPROTO_UDP,
		Frontends: []bpf.Frontend{{Addr: netip.AddrPortFrom(n.Addrs[0], nodePort), Kind: bpf.NodePort}}, Backends: []bpf.Backend{{Addr: server, All: true, Local: true}}}}
	if err := n.Start(); err != nil {
		return err
	}
	outside, outsideAt, err := datagrams(l.Outside, podnet.OutsideIPs[0])
	if err != nil {
		return err
	}
	defer unix.Close(outside)
	for _, f := range []struct {
		what  string
		from  podnet.Space
		to    netip.AddrPort
		takes int
	}{
		{"pod → pod on a node", pods.client, server, fd},
		{"outside → NodePort → pod", l.Outside, netip.AddrPortFrom(n.Addrs[0], nodePort), fd},
		{"pod → outside, masqueraded", pods.client, outsideAt, outside},
	} {
		restarts := b.times(10)
		sent, lost, err := flow(ctx, f.from, f.to, f.takes, func() error {
			for range restarts {
				if err := errors.Join(ctx.Err(), n.Kill()); err != nil {
					return err
				}
				if err := n.Start(); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", f.what, err)
		}
		b.report.aim(fmt.Sprintf("kill -9 of the agent %d times, %s, lost of %d packets", restarts, f.what, sent), float64(lost), "", atMost, 0)
	}
	return nil
}

// flow sends numbered datagrams at packetRate while f runs and a while before and after, and counts those that did not arrive.
func flow(ctx context.Context, from podnet.Space, to netip.AddrPort, takes int, f func() error) (sent, lost int, err error) {
	var fd int
	if err := from.In(func() error {
		if fd, err = unix.Socket(family(to.Addr()), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Connect(fd, sockaddr(to))
	}); err != nil {
		return 0, 0, err
	}
	defer unix.Close(fd)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var n, got atomic.Int64
	sending := make(chan error, 1)
	go func() {
		b := make([]byte, 64)
		for began := time.Now(); ctx.Err() == nil; time.Sleep(time.Millisecond) {
			for due := int64(time.Since(began).Seconds() * packetRate); n.Load() < due; n.Add(1) {
				binary.BigEndian.PutUint64(b, uint64(n.Load()))
				if _, err := unix.Write(fd, b); err != nil && err != unix.EINTR {
					sending <- err
					return
				}
			}
		}
		sending <- nil
	}()
	receiving := make(chan error, 1)
	quiet := make(chan struct{})
	go func() {
		b := make([]byte, 64)
		seen := map[uint64]bool{}
		for {
			_, _, err := unix.Recvfrom(takes, b, 0)
			switch {
			case err == unix.EAGAIN:
				select {
				case <-quiet:
					receiving <- nil
					return
				default:
				}
			case err == unix.EINTR:
			case err != nil:
				receiving <- err
				return
			case !seen[binary.BigEndian.Uint64(b)]:
				seen[binary.BigEndian.Uint64(b)] = true
				got.Add(1)
			}
		}
	}()
	err = pause(ctx, 500*time.Millisecond)
	if err == nil {
		err = f()
	}
	err = errors.Join(err, pause(ctx, 500*time.Millisecond))
	stop()
	err = errors.Join(err, <-sending)
	close(quiet)
	err = errors.Join(err, <-receiving)
	return int(n.Load()), int(n.Load() - got.Load()), err
}
