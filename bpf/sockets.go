package bpf

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A socket that was translated to a backend keeps it for life. If the backend is deleted, nothing may ever answer or say so: the socket is
// aborted then, and its owner learns at once (ECONNABORTED). One whose backend is draining is left alone, and so is one whose Service is
// deleted: its backend may well be alive. That is how kube-proxy's rules leave it too, and how service_backend_gone of lib/service.h judges
// connections that are translated at the packet.

// socketReaper aborts such sockets, in the background.
type socketReaper struct {
	d          *Datapath
	spaces     func() []string // paths of the network namespaces of pods
	home       *os.File        // the node's own namespace
	node       uint64          // its cookie
	cgroupRoot string
	wake       chan struct{}
	aborted    func(n int, err error)

	cookies map[string]spaceCookie // of namespaces, by path
	wait    bool                   // some sockets' Services were too new to tell in the last pass
}

type spaceCookie struct {
	inode  uint64
	cookie uint64
}

// AbortSockets starts to abort the sockets of the node and its pods whose backend goes, and does so for those that went while nobody looked.
// spaces lists the paths of pods' network namespaces, nil is the node alone; done is told how many sockets were aborted, or what went wrong. It ends with Close.
// It is to be called in the node's network namespace.
func (d *Datapath) AbortSockets(spaces func() []string, done func(n int, err error)) error {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("bpf: sockets: %w", err)
	}
	r := &socketReaper{
		d: d, spaces: spaces, home: home, node: d.netns, cgroupRoot: d.cgroupRoot, wake: make(chan struct{}, 1), aborted: done, cookies: map[string]spaceCookie{},
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	d.stopReaper = func() { close(stop); <-ended }
	d.loadBalancers.went(r.poke)
	r.poke()
	go func() {
		defer close(ended)
		defer home.Close()
		r.run(stop)
	}()
	return nil
}

func (r *socketReaper) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// A pass reads the rows of all sockets, however few backends went. Where backends go all the time one in so many parts of it is spent on that.
const idle = 10

// again is how long after a pass the next one looks for sockets that were being made during the first.
const again = time.Second

func (r *socketReaper) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-r.wake:
		}
		left, took := r.timed(false)
		if left {
			select { // who chose a backend just before it went may not have been a connection yet
			case <-stop:
				return
			case <-time.After(again):
			}
			_, took = r.timed(true)
		}
		if r.wait {
			time.AfterFunc(newFor, r.poke)
		}
		select {
		case <-stop:
			return
		case <-time.After(idle * took):
		}
	}
}

// timed makes a pass, and tells how long that took.
func (r *socketReaper) timed(last bool) (left bool, took time.Duration) {
	start := time.Now()
	n, left, err := r.pass(last)
	r.aborted(n, err)
	return left, time.Since(start)
}

// victim is a socket by its rows.
type victim struct {
	key sockSocketKey
	row sockPeer
}

// pass aborts the sockets whose backend is gone. left tells whether some were not found: they are closed, or not made yet. The last pass
// forgets them.
func (r *socketReaper) pass(last bool) (n int, left bool, err error) {
	gone, err := r.victims()
	if err != nil || len(gone) == 0 {
		return 0, false, err
	}
	paths, unseen := r.paths(gone)
	errs := []error{unseen}
	for space, list := range gone {
		fates := map[sockSocketKey]socketFate{}
		if path, ok := paths[space]; ok {
			fates, err = r.abortIn(path, list)
			errs = append(errs, err)
		} else if unseen != nil {
			continue // it may be one of those that could not be looked into
		}
		for _, v := range list {
			switch fates[v.key] {
			case goesOn:
				continue
			case aborted:
				n++
			case unknown:
				left = true
			}
			if last || fates[v.key] == aborted {
				if err := r.d.sock.Maps["sock_reverse"].Delete(v.key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
					errs = append(errs, fmt.Errorf("bpf: forget a socket: %w", err))
				}
			}
		}
	}
	return n, left, errors.Join(errs...)
}

// newFor is how long a Service says nothing of connections of one that had its addresses before (SERVICE_NEW_FOR of lib/service.h).
const newFor = 15 * time.Second

// isNew tells whether more of a Service's endpoints may be told still.
func (t *loadBalancers) isNew(id uint32) (bool, error) {
	var s netService
	err := t.services.Lookup(id, &s)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	return s.Made != 0 && Monotonic()-time.Duration(s.Made)*time.Second < newFor, err
}

// victims are the sockets whose backend is gone, by their namespace.
func (r *socketReaper) victims() (map[uint64][]victim, error) {
	r.wait = false
	out := map[uint64][]victim{}
	type backend struct {
		service uint32
		addr    netAddr
		port    uint16
		asked   netFrontendKey
	}
	known := map[backend]bool{} // gone or not
	lb := r.d.loadBalancers
	isGone := func(b backend) (bool, error) {
		member := netMemberKey{Service: b.service, Port: b.port, Addr: b.addr}
		if yes, err := has[netMember](lb.members, member); yes || err != nil {
			return false, err
		}
		// The Service's port may have another name now, and so be another service.
		var fe netFrontend
		err := lb.frontends.Lookup(b.asked, &fe)
		if err == nil && fe.Service != b.service {
			member.Service = fe.Service
			if yes, err := has[netMember](lb.members, member); yes || err != nil {
				return false, err
			}
			if fe.All+fe.Local > 0 {
				fresh, err := lb.isNew(fe.Service)
				if !fresh || err != nil {
					return err == nil, err
				}
				r.wait = true
			}
			err = nil // a Service that was made anew, whose endpoints are not all told yet
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return false, err
		}
		return has[netService](lb.services, b.service)
	}
	var failed error
	err := eachRow(r.d.sock.Maps["sock_reverse"], "sockets", func(k sockSocketKey, v sockPeer) {
		if k.Row != rowReverse || v.Service == 0 { // 0: of a release before this, which did not note it
			return
		}
		b := backend{v.Service, netAddr(k.Addr), k.Port, netFrontendKey{Addr: netAddr(v.Addr), Port: v.Port, Proto: uint8(v.Proto)}}
		if _, ok := known[b]; !ok {
			var err error
			if known[b], err = isGone(b); err != nil {
				failed = fmt.Errorf("bpf: backend of a socket: %w", err)
			}
		}
		if known[b] {
			out[v.Netns] = append(out[v.Netns], victim{k, v})
		}
	})
	return out, errors.Join(err, failed)
}

// has tells whether a map has a row.
func has[V any](m *ebpf.Map, key any) (bool, error) {
	var v V
	err := m.Lookup(key, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	return err == nil, err
}

const rowReverse = 0 // ROW_REVERSE in sock.c

// paths finds the namespaces of victims; the node's own is the path "". What keeps it from looking into one is mostly the same for all: it
// is told once.
func (r *socketReaper) paths(gone map[uint64][]victim) (map[uint64]string, error) {
	out := map[uint64]string{}
	missing := 0
	for space := range gone {
		if space == r.node {
			out[space] = ""
		} else {
			missing++
		}
	}
	if missing == 0 {
		return out, nil
	}
	var failed error
	fresh := map[string]spaceCookie{}
	var list []string
	if r.spaces != nil {
		list = r.spaces()
	}
	for _, path := range list {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			continue // its pod has gone
		}
		known, ok := r.cookies[path]
		if !ok || known.inode != st.Ino {
			cookie, err := NetnsCookie(path, r.cgroupRoot)
			if err != nil {
				if failed == nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EINVAL) { // those are as above
					failed = err
				}
				continue
			}
			known = spaceCookie{st.Ino, cookie}
		}
		fresh[path] = known
		if _, ok := gone[known.cookie]; ok {
			out[known.cookie] = path
		}
	}
	r.cookies = fresh
	return out, failed
}

// NetnsCookie names the network namespace at a path, as the socket hooks know it.
func NetnsCookie(path, cgroupRoot string) (cookie uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("bpf: network namespace: %w", err)
	}
	defer f.Close()
	err = inSpace(f, func() error {
		cookie, err = netnsCookie(cgroupRoot)
		return err
	})
	return cookie, err
}

// inSpace runs do on a thread in a network namespace. The thread ends with it, but for one that is in there already: to enter takes
// CAP_SYS_ADMIN, into one's own namespace too.
func inSpace(space *os.File, do func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if isIn(space) {
			defer runtime.UnlockOSThread()
			result <- do()
			return
		}
		if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err != nil {
			if errors.Is(err, unix.EPERM) {
				err = fmt.Errorf("%w: it takes CAP_SYS_ADMIN", err)
			}
			result <- fmt.Errorf("bpf: enter network namespace %s: %w", space.Name(), err)
			return
		}
		result <- do()
	}()
	return <-result
}

// isIn tells whether the calling thread is in a network namespace.
func isIn(space *os.File) bool {
	var own, other unix.Stat_t
	return unix.Stat("/proc/thread-self/ns/net", &own) == nil && unix.Fstat(int(space.Fd()), &other) == nil && own.Dev == other.Dev && own.Ino == other.Ino
}

// socketFate is what becomes of a socket.
type socketFate int

const (
	unknown socketFate = iota // it is not there
	goesOn                    // it is not connected to that backend, or could not be looked for
	aborted
)

// abortIn aborts sockets of one namespace, and tells the fate of each. One may have been connected to several backends, one after the other.
func (r *socketReaper) abortIn(path string, list []victim) (map[sockSocketKey]socketFate, error) {
	space := r.home
	fates := map[sockSocketKey]socketFate{}
	if path != "" {
		var err error
		if space, err = os.Open(path); errors.Is(err, os.ErrNotExist) {
			return nil, nil // gone with its sockets
		} else if err != nil {
			goOn(fates, list, 0)
			return fates, fmt.Errorf("bpf: sockets: %w", err)
		}
		defer space.Close()
	}
	err := inSpace(space, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		if err != nil {
			return fmt.Errorf("bpf: sockets: %w", err)
		}
		defer unix.Close(fd)
		var errs []error
		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			errs = append(errs, abortOf(fd, proto, list, fates))
		}
		return errors.Join(errs...)
	})
	if err != nil && len(fates) == 0 {
		goOn(fates, list, 0)
	}
	return fates, err
}

// goOn leaves the victims of a protocol, 0: of each, alone, whose fate is not known.
func goOn(fates map[sockSocketKey]socketFate, list []victim, proto uint8) {
	for _, v := range list {
		if (proto == 0 || v.row.Proto == uint16(proto)) && fates[v.key] == unknown {
			fates[v.key] = goesOn
		}
	}
}

// abortOf aborts the sockets of one protocol, by a socket of the kernel's that tells of those of its namespace.
func abortOf(fd int, proto uint8, list []victim, fates map[sockSocketKey]socketFate) error {
	want := map[uint64][]victim{}
	for _, v := range list {
		if v.row.Proto == uint16(proto) {
			want[v.key.Cookie] = append(want[v.key.Cookie], v)
		}
	}
	if len(want) == 0 {
		return nil
	}
	var errs []error
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		socks, err := diagSockets(fd, family, proto, anyState)
		if err != nil {
			goOn(fates, list, proto)
			errs = append(errs, err)
			continue
		}
		for _, s := range socks {
			for _, v := range want[s.cookie] {
				fates[v.key] = goesOn
				if s.remote.Port() != port16(v.key.Port) || addr16(s.remote.Addr().Unmap()) != netAddr(v.key.Addr) {
					continue // unconnected, or connected to something else since
				}
				switch err := diagDestroy(fd, family, proto, s); {
				case err == nil:
					fates[v.key] = aborted
				case errors.Is(err, unix.ENOENT): // closed meanwhile
				default:
					errs = append(errs, fmt.Errorf("bpf: abort the socket %s → %s, whose backend is gone: %w", s.local, s.remote, err))
				}
			}
		}
	}
	return errors.Join(errs...)
}
