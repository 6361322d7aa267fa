package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Space is a network namespace, kept by the file that it is mounted on.
type Space string

// NewSpace makes a network namespace with lo up. Remove takes it away.
func NewSpace(path string) (Space, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return setUp("lo")
	})
	if err != nil {
		return "", errors.Join(fmt.Errorf("namespace %s: %w", path, err), Space(path).Remove())
	}
	return Space(path), nil
}

// Remove takes the namespace's name away; it goes with its last user. One that is gone is no error.
func (s Space) Remove() error {
	err := unix.Unmount(string(s), unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		err = nil
	}
	if rerr := os.Remove(string(s)); !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// In runs f on a thread that is in the namespace. Sockets made there stay in it, and so do programs started there.
func (s Space) In(f func() error) error {
	return onThread(func() error {
		ns, err := os.Open(string(s))
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", s, err)
		}
		return f()
	})
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		defer close(done)      // also when f ends the goroutine
		runtime.LockOSThread() // and never unlocked: nobody else meets the namespace
		done <- f()
	}()
	err, ok := <-done
	if !ok {
		return errors.New("ended in the middle")
	}
	return err
}

// Dial connects from within the namespace, as a process of no node.
func (s Space) Dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	// A literal address and no fallback: the socket is made on this thread.
	err = s.In(func() (err error) {
		c, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Connect makes a veth pair: an interface in this namespace, the other end in another one.
func (s Space) Connect(name string, other Space, otherName string) error {
	peer, err := os.Open(string(other))
	if err != nil {
		return err
	}
	defer peer.Close()
	err = s.In(func() error {
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: otherName, PeerNamespace: netlink.NsFd(int(peer.Fd()))}
		if err := netlink.LinkAdd(v); err != nil {
			return err
		}
		return setUp(name)
	})
	if err == nil {
		err = other.In(func() error { return setUp(otherName) })
	}
	if err != nil {
		return fmt.Errorf("link from %s in %s to %s in %s: %w", name, filepath.Base(string(s)), otherName, filepath.Base(string(other)), err)
	}
	return nil
}

// Address gives an interface of this namespace addresses in CIDR notation. IPv6 ones are used at once, without looking for another user.
func (s Space) Address(name string, cidrs ...string) error {
	return s.In(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, cidr := range cidrs {
			a, err := netlink.ParseAddr(cidr)
			if err != nil {
				return err
			}
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, a); err != nil {
				return fmt.Errorf("address %s: %w", cidr, err)
			}
		}
		return nil
	})
}

func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}
