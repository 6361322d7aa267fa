package connectivity

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kinds of probes.
const (
	ProbeHTTP   = "http"    // a greeting, by a new connection
	ProbeUDP    = "udp"     // a datagram and its echo
	ProbeFull   = "full"    // a datagram as large as the interface's MTU allows, which may not be fragmented, and its echo
	ProbeLarge  = "large"   // a datagram that has to be fragmented, and its echo
	ProbeDNS    = "dns"     // a name's addresses
	ProbeTCP    = "connect" // a connection alone
	ProbeStream = "stream"  // throughput
	ProbeTrips  = "trips"   // round trips on one connection
)

// Probe is one thing that a pod is to try.
type Probe struct {
	Kind   string        `json:"kind"`
	Target string        `json:"target"` // host:port, or a name; ${zone} in it is the cluster's zone
	Family string        `json:"family,omitempty"`
	Within time.Duration `json:"within"`
}

// Result is what came of it.
type Result struct {
	Error    string        `json:"error,omitempty"`
	Pod      string        `json:"pod,omitempty"`    // who answered
	Client   string        `json:"client,omitempty"` // the address that the answerer saw
	Addrs    []string      `json:"addrs,omitempty"`
	Bytes    int           `json:"bytes,omitempty"` // of the largest packet
	Took     time.Duration `json:"took,omitempty"`  // of one round trip; the median of several
	BitsPerS float64       `json:"bitsPerS,omitempty"`
}

type request struct {
	ID    int   `json:"id"`
	Probe Probe `json:"probe"`
}

type response struct {
	ID     int    `json:"id"`
	Result Result `json:"result"`
}

// Answer carries out the probes that come as JSON objects on in, some at a time, and writes their results to out. It ends with in.
func Answer(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, 8)
	dec, enc := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	for {
		var r request
		if err := dec.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("probes: %w", err)
		}
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			res := Try(ctx, r.Probe)
			mu.Lock()
			defer mu.Unlock()
			if err := enc.Encode(response{r.ID, res}); err != nil {
				cancel() // nobody listens
			}
		})
	}
}

// Try carries out one probe.
func Try(ctx context.Context, p Probe) Result {
	ctx, cancel := context.WithTimeout(ctx, p.Within)
	defer cancel()
	p.Target = strings.ReplaceAll(p.Target, "${zone}", zone())
	var r Result
	var err error
	switch p.Kind {
	case ProbeHTTP:
		r, err = tryHTTP(ctx, p)
	case ProbeUDP, ProbeFull, ProbeLarge:
		r, err = tryUDP(ctx, p)
	case ProbeDNS:
		r, err = tryDNS(ctx, p)
	case ProbeTCP:
		var conn net.Conn
		began := time.Now()
		if conn, err = dial(ctx, "tcp", p); err == nil {
			r.Took = time.Since(began)
			conn.Close()
		}
	case ProbeStream:
		r, err = tryStream(ctx, p)
	case ProbeTrips:
		r, err = tryTrips(ctx, p)
	default:
		err = fmt.Errorf("probe %q is unknown: the image is of another release", p.Kind)
	}
	if err != nil {
		r.Error = reason(err)
	}
	return r
}

// reason says in few words why a probe failed.
func reason(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no route"
	case errors.Is(err, syscall.EMSGSIZE):
		return "packet too big"
	}
	return err.Error()
}

// zone is the cluster's zone as the pod's search list names it: svc.ZONE is among it.
func zone() string {
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return "cluster.local"
	}
	return zoneOf(string(b))
}

func zoneOf(resolvConf string) string {
	for line := range strings.Lines(resolvConf) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "search" {
			continue
		}
		for _, s := range f[1:] {
			if z, ok := strings.CutPrefix(s, "svc."); ok {
				return strings.TrimSuffix(z, ".")
			}
		}
	}
	return "cluster.local"
}

func network(transport, family string) string {
	switch family {
	case "IPv4":
		return transport + "4"
	case "IPv6":
		return transport + "6"
	}
	return transport
}

func dial(ctx context.Context, transport string, p Probe) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network(transport, p.Family), p.Target)
}

// dialUntil makes a connection that fails when ctx ends.
func dialUntil(ctx context.Context, transport string, p Probe) (net.Conn, error) {
	conn, err := dial(ctx, transport, p)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func tryHTTP(ctx context.Context, p Probe) (Result, error) {
	began := time.Now()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, "tcp", p) }}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Target+"/", nil)
	if err != nil {
		return Result{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return Result{}, err
	}
	defer resp.Body.Close()
	var g Greeting
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<12)).Decode(&g); err != nil {
		return Result{}, fmt.Errorf("an answer of somebody else: %w", err)
	}
	return Result{Pod: g.Pod, Client: g.Client, Took: time.Since(began)}, nil
}

// largeSize is more than any MTU that nodes have between them but jumbo frames.
const largeSize = 12000

// headers of IP and UDP.
func headers(a net.Addr) int {
	if u, ok := a.(*net.UDPAddr); ok && u.AddrPort().Addr().Unmap().Is4() {
		return 20 + 8
	}
	return 40 + 8
}

func tryUDP(ctx context.Context, p Probe) (Result, error) {
	conn, err := dialUntil(ctx, "udp", p)
	if err != nil {
		return Result{}, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	size := 32
	switch p.Kind {
	case ProbeLarge:
		size = largeSize
	case ProbeFull:
		mtu, err := mtuTo(conn.RemoteAddr())
		if err == nil {
			err = dontFragment(conn.(*net.UDPConn))
		}
		if err != nil {
			return Result{}, err
		}
		size = mtu - headers(conn.LocalAddr())
		if size > 1<<16-1-28 { // lo
			size = 1<<16 - 1 - 48
		}
	}
	msg := make([]byte, size)
	for i := range msg {
		msg[i] = byte(i)
	}
	buf := make([]byte, 1<<16)
	for { // a datagram may be lost, so several are sent
		began := time.Now()
		if _, err := conn.Write(msg); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			return Result{Bytes: size + headers(conn.LocalAddr())}, err
		}
		wait := began.Add(time.Second)
		if wait.After(deadline) {
			wait = deadline
		}
		if err := conn.SetReadDeadline(wait); err != nil {
			return Result{}, err
		}
		n, err := conn.Read(buf)
		if err == nil && !bytes.Equal(buf[:n], msg) {
			return Result{}, fmt.Errorf("%d bytes were sent and %d came back, or others", size, n)
		}
		if err == nil {
			return Result{Bytes: size + headers(conn.LocalAddr()), Took: time.Since(began)}, nil
		}
		if !time.Now().Before(deadline) || ctx.Err() != nil {
			return Result{Bytes: size + headers(conn.LocalAddr())}, err
		}
	}
}

// mtuTo is the MTU of the interface, or of the route, that leads to an address. What the kernel has learned of the path does not count.
func mtuTo(remote net.Addr) (int, error) {
	routes, err := netlink.RouteGet(remote.(*net.UDPAddr).IP)
	if err != nil || len(routes) == 0 {
		return 0, fmt.Errorf("route to %s: %w", remote, err)
	}
	l, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return 0, fmt.Errorf("route to %s: %w", remote, err)
	}
	if mtu := routes[0].MTU; mtu > 0 && routes[0].MTULock {
		return mtu, nil
	}
	return l.Attrs().MTU, nil
}

func dontFragment(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	v4 := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().Is4()
	var serr error
	if err := raw.Control(func(fd uintptr) {
		if v4 {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		} else {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		}
	}); err != nil {
		return err
	}
	return serr
}

func tryDNS(ctx context.Context, p Probe) (Result, error) {
	began := time.Now()
	addrs, err := (&net.Resolver{PreferGo: true}).LookupNetIP(ctx, network("ip", p.Family), p.Target)
	r := Result{Took: time.Since(began)}
	for _, a := range addrs {
		r.Addrs = append(r.Addrs, a.Unmap().String())
	}
	slices.Sort(r.Addrs)
	return r, err
}

// Figures are taken over so long, but for the time that connections take.
const (
	streamTime = 2 * time.Second
	trips      = 2000
)

func tryStream(ctx context.Context, p Probe) (Result, error) {
	conn, err := dial(ctx, "tcp", p)
	if err != nil {
		return Result{}, err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{'s'}); err != nil {
		return Result{}, err
	}
	if err := conn.SetDeadline(time.Now().Add(2 * streamTime)); err != nil {
		return Result{}, err
	}
	buf := make([]byte, 1<<18)
	if _, err := io.ReadFull(conn, buf); err != nil { // the window opens first
		return Result{}, err
	}
	n, began := 0, time.Now()
	for time.Since(began) < streamTime {
		got, err := conn.Read(buf)
		n += got
		if err != nil {
			return Result{}, err
		}
	}
	return Result{BitsPerS: float64(n) * 8 / time.Since(began).Seconds()}, nil
}

func tryTrips(ctx context.Context, p Probe) (Result, error) {
	conn, err := dialUntil(ctx, "tcp", p)
	if err != nil {
		return Result{}, err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{'r'}); err != nil {
		return Result{}, err
	}
	took := make([]time.Duration, trips)
	var b [1]byte
	for i := range took {
		began := time.Now()
		if _, err := conn.Write(b[:]); err != nil {
			return Result{}, err
		}
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			return Result{}, err
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return Result{Took: took[trips/2]}, nil
}
