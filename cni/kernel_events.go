package cni

import (
	"context"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"
)

// kernelEvents are the changes of links, addresses and routes in a network namespace. After an error some are lost.
type kernelEvents struct {
	routes chan netlink.RouteUpdate
	links  chan netlink.LinkUpdate
	addrs  chan netlink.AddrUpdate
	failed chan error
	stop   func()
}

// eventBuffer is the size of a subscription's socket buffer: a node with many pods has storms of events, few of which are ours.
const eventBuffer = 1 << 20

// watchKernel subscribes in the namespace of the calling thread, until ctx ends or stop is called.
func watchKernel(ctx context.Context) (*kernelEvents, error) {
	e := &kernelEvents{routes: make(chan netlink.RouteUpdate, 64), links: make(chan netlink.LinkUpdate, 64), addrs: make(chan netlink.AddrUpdate, 64), failed: make(chan error, 1)}
	done := make(chan struct{})
	end := sync.OnceFunc(func() { close(done) })
	cancel := context.AfterFunc(ctx, end)
	e.stop = func() {
		cancel()
		end()
		// The readers close their channels when they end; nobody else takes what is in them.
		go func() {
			for range e.routes {
			}
			for range e.links {
			}
			for range e.addrs {
			}
		}()
	}
	fail := func(err error) {
		select {
		case <-done:
		case e.failed <- fmt.Errorf("cni: netlink: %w", err):
		default:
		}
	}
	if err := netlink.RouteSubscribeWithOptions(e.routes, done, netlink.RouteSubscribeOptions{ErrorCallback: fail, ReceiveBufferSize: eventBuffer, ReceiveBufferForceSize: true}); err != nil {
		close(e.routes)
		close(e.links)
		close(e.addrs)
		e.stop()
		return nil, fmt.Errorf("cni: watch routes: %w", err)
	}
	if err := netlink.LinkSubscribeWithOptions(e.links, done, netlink.LinkSubscribeOptions{ErrorCallback: fail, ReceiveBufferSize: eventBuffer, ReceiveBufferForceSize: true}); err != nil {
		close(e.links)
		close(e.addrs)
		e.stop()
		return nil, fmt.Errorf("cni: watch links: %w", err)
	}
	if err := netlink.AddrSubscribeWithOptions(e.addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: fail, ReceiveBufferSize: eventBuffer, ReceiveBufferForceSize: true}); err != nil {
		close(e.addrs)
		e.stop()
		return nil, fmt.Errorf("cni: watch addresses: %w", err)
	}
	return e, nil
}
