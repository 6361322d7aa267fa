package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hold connects and tells what becomes of the connection while nobody says anything.
func hold(network, addr string) {
	c, err := net.DialTimeout(network, addr, late)
	if err == nil {
		_, err = exchange(c, "hello")
	}
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	c.SetDeadline(time.Time{})
	fmt.Println("up", c.RemoteAddr())
	_, err = c.Read(make([]byte, 1))
	fmt.Println(err)
}

// reaped runs AbortSockets, and returns a channel of what each pass has done.
func (l *lab) reaped(t testing.TB, spaces ...space) <-chan int {
	t.Helper()
	passes := make(chan int, 100)
	var paths []string
	for _, s := range spaces {
		paths = append(paths, fmt.Sprint("/proc/self/fd/", s.f.Fd()))
	}
	must(t, l.d.AbortSockets(func() []string { return paths }, func(n int, err error) {
		if err != nil {
			t.Error(err)
		}
		passes <- n
	}))
	return passes
}

// lost waits for the end of a connection.
func lost(t *testing.T, c net.Conn) {
	t.Helper()
	must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%s → %s: %v", c.LocalAddr(), c.RemoteAddr(), err)
	}
}

// Connections that were translated to a backend end when it is deleted, of processes of the node and of pods. Those to the same address by
// another Service go on, those to a draining backend too, and sockets that are not connected.
func TestSocketsOfABackendThatGoes(t *testing.T) {
	l := newLab(t)
	for _, f := range families {
		for i := range 2 {
			if f.name == "IPv4" {
				l.pods[i].serve(t, fmt.Sprint("pod", i), 8080)
			}
		}
	}
	l.node.serve(t, "node", 8081)
	passes := l.reaped(t, l.pods[0], l.pods[1])
	if n := <-passes; n != 0 {
		t.Errorf("%d sockets aborted at the start", n)
	}
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			first, second := ap(f.of("10.96.0.5:80", "[fd00:10:96::5]:80")), ap(f.of("10.96.0.6:80", "[fd00:10:96::6]:80"))
			set := func(owner string, front netip.AddrPort, backends ...Backend) {
				t.Helper()
				var rows []LoadBalancer
				for _, proto := range []uint8{6, 17} {
					rows = append(rows, LoadBalancer{Name: fmt.Sprint("ns/", owner, proto), Protocol: proto, Frontends: fronts(ClusterIP, front), Backends: backends})
				}
				_, err := l.d.LoadBalancers().Replace(owner, rows)
				must(t, err)
			}
			old := at(f.pod, 8080)
			set("first", first, backs(old)...)
			set("second", second, backs(old)...)
			mine, other := l.node.dial(t, "tcp", first.String()), l.node.dial(t, "tcp", second.String())
			datagrams := l.node.dial(t, "udp", first.String())
			var open *net.UDPConn
			l.node.within(t, func() (err error) { open, err = net.ListenUDP("udp", nil); return err })
			defer open.Close()
			_, err := open.WriteToUDPAddrPort([]byte("x"), first)
			must(t, err)
			for _, c := range []net.Conn{mine, other, datagrams} {
				_, err := exchange(c, "hello")
				must(t, err)
			}
			inPod, ended := l.holding(t, l.pods[1], "tcp", first.String())

			set("first", first, Backend{Addr: old}, backs(at(f.pod, 8088))[0])
			for _, c := range []net.Conn{mine, other, datagrams} {
				if _, err := exchange(c, "draining"); err != nil {
					t.Errorf("%s → %s: %v", c.LocalAddr(), c.RemoteAddr(), err)
				}
			}

			set("first", first, backs(at(f.pod, 8088))...)
			lost(t, mine)
			lost(t, datagrams)
			select {
			case line := <-ended:
				if !strings.Contains(line, "abort") && !strings.Contains(line, "reset") {
					t.Errorf("in a pod, connected to %s: %s", inPod, line)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("a pod's connection hangs")
			}
			if inPod != first.String() {
				t.Errorf("the peer is %s", inPod)
			}
			if _, err := exchange(other, "still"); err != nil {
				t.Errorf("the other Service's connection: %v", err)
			}
			must(t, open.SetDeadline(time.Now().Add(late)))
			b := make([]byte, 100)
			if _, from, err := open.ReadFromUDPAddrPort(b); err != nil || netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != first { // what came before
				t.Errorf("an unconnected socket: %v from %v", err, from)
			}
			for total := 0; total < 3; {
				select {
				case n := <-passes:
					total += n
				case <-time.After(30 * time.Second):
					t.Fatalf("%d sockets are said to be aborted", total)
				}
			}
			// The Service goes, its backend does not: nor do its connections.
			_, err = l.d.LoadBalancers().Replace("second", nil)
			must(t, err)
			<-passes
			if _, err := exchange(other, "after"); err != nil {
				t.Errorf("a deleted Service's connection: %v", err)
			}
			if peer := peerOf(t, other); peer != second {
				t.Errorf("its peer is %v", peer)
			}
		})
	}
}

// A socket that is closed leaves no row behind, of whatever family and protocol: else the rows of many short connections would push out that of a long one.
func TestClosedSocketsLeaveNoRows(t *testing.T) {
	l := newLab(t)
	for _, f := range families {
		if f.name == "IPv4" {
			l.pods[0].serve(t, "pod", 8080) // in both families
		}
		for proto, front := range map[uint8]netip.AddrPort{6: ap(f.of("10.96.0.5:80", "[fd00:10:96::5]:80")), 17: ap(f.of("10.96.0.5:80", "[fd00:10:96::5]:80"))} {
			owner := fmt.Sprint(f.name, proto)
			_, err := l.d.LoadBalancers().Replace(owner, []LoadBalancer{{Name: "ns/" + owner, Protocol: proto, Frontends: fronts(ClusterIP, front), Backends: backs(at(f.pod, 8080))}})
			must(t, err)
		}
	}
	rows := func() (n int) {
		must(t, eachRow(l.d.sock.Maps["sock_reverse"], "sockets", func(sockSocketKey, sockPeer) { n++ }))
		return n
	}
	for network, addr := range map[string]string{"tcp4": "10.96.0.5:80", "udp4": "10.96.0.5:80", "tcp6": "[fd00:10:96::5]:80", "udp6": "[fd00:10:96::5]:80"} {
		t.Run(network, func(t *testing.T) {
			long := l.node.dial(t, network, addr)
			held := rows()
			if held == 0 {
				t.Fatal("no row of a connected socket")
			}
			for range 5 {
				l.node.within(t, func() error { return ask(network, addr, "hello") })
			}
			if n := rows(); n != held {
				t.Errorf("%d rows behind five sockets that were closed, %d before", n, held)
			}
			_, err := exchange(long, "still")
			must(t, err)
			must(t, long.Close())
			if n := rows(); n != 0 {
				t.Errorf("%d rows behind the last one", n)
			}
		})
	}
	for _, network := range []string{"mapped-tcp", "mapped-udp"} {
		l.node.within(t, func() error { return ask(network, "10.96.0.5:80", "hello") })
		if n := rows(); n != 0 {
			t.Errorf("%s: %d rows behind a socket that was closed", network, n)
		}
	}
}

// A socket that was connected to two backends, one after the other, is aborted if both go; one to a Service's port that has
// another name since, if that has its backend no more.
func TestSocketsOfMoreThanOneBackend(t *testing.T) {
	l := newLab(t)
	l.pods[0].serve(t, "pod", 8080)
	l.node.serve(t, "node", 8080)
	passes := l.reaped(t)
	<-passes
	front, second := ap("10.96.0.5:80"), ap("10.96.0.6:80")
	set := func(owner, port string, front netip.AddrPort, backends ...netip.AddrPort) {
		t.Helper()
		var rows []LoadBalancer
		for _, proto := range []uint8{6, 17} {
			rows = append(rows, LoadBalancer{Name: fmt.Sprint("ns/", owner, ":", port, proto), Protocol: proto, Frontends: fronts(ClusterIP, front), Backends: backs(backends...)})
		}
		_, err := l.d.LoadBalancers().Replace(owner, rows)
		must(t, err)
	}
	set("first", "http", front, at(pod, 8080))
	set("second", "http", second, at(nodeIP, 8080))
	datagrams := l.node.dial(t, "udp", front.String())
	raw, err := datagrams.(*net.UDPConn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		err = unix.Connect(int(fd), &unix.SockaddrInet4{Addr: second.Addr().As4(), Port: int(second.Port())})
	}))
	must(t, err)
	connection := l.node.dial(t, "tcp", front.String())
	for _, c := range []net.Conn{datagrams, connection} {
		_, err := exchange(c, "hello")
		must(t, err)
	}
	set("first", "web", front, at(pod, 8080)) // its name alone
	if _, err := exchange(connection, "renamed"); err != nil {
		t.Errorf("a port that was renamed: %v", err)
	}
	gone := map[string][]LoadBalancer{}
	for owner, front := range map[string]netip.AddrPort{"first": front, "second": second} {
		for _, proto := range []uint8{6, 17} {
			gone[owner] = append(gone[owner], LoadBalancer{Name: fmt.Sprint("ns/", owner, ":other", proto), Protocol: proto, Frontends: fronts(ClusterIP, front), Backends: backs(at(nodeIP, 8088))})
		}
	}
	if _, errs := l.d.LoadBalancers().ReplaceAll(gone); len(errs) > 0 {
		t.Fatal(errs)
	}
	lost(t, datagrams)
	lost(t, connection)
}

// A Service that was made anew has its endpoints one slice after the other: a connection of before whose backend is in none of the first goes on, and ends
// if it is in none when the Service is no longer new.
func TestSocketsOfAServiceMadeAnew(t *testing.T) {
	l := newLab(t)
	l.pods[0].serve(t, "pod", 8080)
	passes := l.reaped(t)
	<-passes
	front := ap("10.96.0.5:80")
	set := func(owner string, backends ...netip.AddrPort) {
		t.Helper()
		_, err := l.d.LoadBalancers().Replace(owner, []LoadBalancer{{Name: "ns/web:http", Protocol: 6, Frontends: fronts(ClusterIP, front), Backends: backs(backends...)}})
		must(t, err)
	}
	set("first", at(pod, 8080))
	c := l.node.dial(t, "tcp", front.String())
	_, err := exchange(c, "hello")
	must(t, err)
	_, err = l.d.LoadBalancers().Replace("first", nil)
	must(t, err)
	<-passes
	set("second", at(nodeIP, 8088))
	l.d.olderBy(t, -stillNew)
	set("second", at(nodeIP, 8089))
	<-passes
	if _, err := exchange(c, "one slice is there"); err != nil {
		t.Fatal(err)
	}
	l.d.olderBy(t, stillNew+newFor)
	set("second", at(nodeIP, 8090))
	lost(t, c)
}

// Rows of sockets that could not be looked for are kept.
func TestSocketsThatCanNotBeLookedInto(t *testing.T) {
	r := &socketReaper{node: 1}
	if paths, err := r.paths(map[uint64][]victim{2: nil}); len(paths) > 0 || err != nil {
		t.Errorf("%v, %v", paths, err)
	}
	fates := map[sockSocketKey]socketFate{{Cookie: 1}: aborted}
	goOn(fates, []victim{{key: sockSocketKey{Cookie: 1}, row: sockPeer{Proto: 6}}, {key: sockSocketKey{Cookie: 2}, row: sockPeer{Proto: 6}}, {key: sockSocketKey{Cookie: 3}, row: sockPeer{Proto: 17}}}, 6)
	if fates[sockSocketKey{Cookie: 1}] != aborted || fates[sockSocketKey{Cookie: 2}] != goesOn || fates[sockSocketKey{Cookie: 3}] != unknown {
		t.Error(fates)
	}
}

// peerOf asks the kernel, not package net, which remembers.
func peerOf(t *testing.T, c net.Conn) (peer netip.AddrPort) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		sa, err := unix.Getpeername(int(fd))
		must(t, err)
		switch a := sa.(type) {
		case *unix.SockaddrInet4:
			peer = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
		case *unix.SockaddrInet6:
			peer = netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
		}
	}))
	return peer
}

// holding runs a client in a namespace as a process of the node; it returns its peer and a channel of the error that ends its connection.
func (l *lab) holding(t *testing.T, s space, network, addr string) (peer string, ended <-chan string) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	dir, err := os.Open(l.config.NodeCgroup)
	must(t, err)
	defer dir.Close()
	c := exec.Command(self, "hold", network, addr)
	c.Env = append(os.Environ(), "STRAKE_TEST_CLIENT=1")
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	out, err := c.StdoutPipe()
	must(t, err)
	s.within(t, c.Start)
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("the client says nothing")
	}
	peer, ok := strings.CutPrefix(lines.Text(), "up ")
	if !ok {
		t.Fatal(lines.Text())
	}
	ch := make(chan string, 1)
	go func() {
		lines.Scan()
		ch <- lines.Text()
		io.Copy(io.Discard, out)
	}()
	return peer, ch
}

// The kernel's messages are read whatever is in them.
func FuzzDiagSocket(f *testing.F) {
	f.Add([]byte{})
	f.Add(append([]byte{unix.AF_INET, 1, 0, 0}, make([]byte, 48)...))
	f.Add(append([]byte{unix.AF_INET6, 1, 0, 0}, make([]byte, 100)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := diagSocketOf(b)
		if ok != (len(b) >= 52) || ok && (!s.local.IsValid() || !s.remote.IsValid()) {
			t.Errorf("%+v, %v of %d bytes", s, ok, len(b))
		}
	})
}

func TestSocketsCanBeDestroyed(t *testing.T) {
	must(t, haveDestroy())
}

// Sockets whose backend went while no agent ran are found by the next one.
func TestSocketsOfABackendThatWentUnseen(t *testing.T) {
	l := newLab(t)
	l.pods[0].serve(t, "pod0", 8080)
	row := LoadBalancer{Name: "ns/a", Protocol: 6, Frontends: fronts(ClusterIP, ap("10.96.0.5:80")), Backends: backs(at(pod, 8080))}
	set := func() {
		t.Helper()
		_, err := l.d.LoadBalancers().Replace("u", []LoadBalancer{row})
		must(t, err)
	}
	set()
	c := l.node.dial(t, "tcp", "10.96.0.5:80")
	if _, err := exchange(c, "hello"); err != nil {
		t.Fatal(err)
	}
	row.Backends = backs(at(other, 8080))
	set()
	must(t, l.d.Close())
	l.d = open(t, l.config)
	passes := l.reaped(t)
	lost(t, c)
	if n := <-passes; n != 1 {
		t.Errorf("%d sockets aborted", n)
	}
}

// What a pod whose sockets are left alone asks of a Service is translated at its packets, with the same result.
func TestSocketsLeftAlone(t *testing.T) {
	l := newLab(t)
	l.service(t, "10.96.0.5:80", "[fd00:10:96::5]:80")
	cookie, err := l.d.NetnsCookie(fmt.Sprint("/proc/self/fd/", l.pods[0].f.Fd()))
	must(t, err)
	ask := func(addr string) bool {
		t.Helper()
		before := l.counter(t, "pod_to_service")
		for _, network := range []string{"tcp", "udp", "udp-open"} {
			out, err := l.client(t, l.pods[0], true, network, addr, 3)
			if err != nil || strings.Count(out, addr+" pod") != 3 {
				t.Errorf("%s %s: %s, %v", network, addr, out, err)
			}
		}
		return l.counter(t, "pod_to_service") != before
	}
	for _, addr := range []string{"10.96.0.5:80", "[fd00:10:96::5]:80"} {
		if ask(addr) {
			t.Error("translated at the packet")
		}
	}
	_, err = l.d.SocketsOff().Replace("box", []SocketsOff{{Netns: cookie}})
	must(t, err)
	must(t, l.d.Close())
	l.d = open(t, l.config)
	if rows, err := l.d.SocketsOff().Dump(); err != nil || len(rows) != 1 || rows[0] != (SocketsOff{Owner: "box", Netns: cookie}) {
		t.Errorf("%+v, %v", rows, err)
	}
	for _, addr := range []string{"10.96.0.5:80", "[fd00:10:96::5]:80"} {
		if !ask(addr) {
			t.Error("translated at the socket")
		}
	}
	_, err = l.d.SocketsOff().Prune(func(string) bool { return false })
	must(t, err)
	if ask("10.96.0.5:80") {
		t.Error("translated at the packet again")
	}
}

// The node's own sockets are aborted without CAP_SYS_ADMIN: its namespace need not be entered.
func TestOwnNamespaceNeedsNoRights(t *testing.T) {
	if os.Getenv("STRAKE_NO_SYS_ADMIN") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestOwnNamespaceNeedsNoRights$", "-test.v")
		cmd.Env = append(os.Environ(), "STRAKE_NO_SYS_ADMIN=1")
		var out []byte
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and what it starts has no more rights than it may give
			err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0)
			if err == nil {
				out, err = cmd.CombinedOutput()
			}
			done <- err
		}()
		if err := <-done; err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	own, err := os.Open("/proc/thread-self/ns/net")
	must(t, err)
	defer own.Close()
	ran := false
	if err := inSpace(own, func() error { ran = true; return nil }); err != nil || !ran {
		t.Errorf("%v, ran: %v", err, ran)
	}
	if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); !errors.Is(err, unix.EPERM) {
		t.Errorf("the rights are there still: %v", err)
	}
}
