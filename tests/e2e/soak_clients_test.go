package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/tests/podnet"
)

// eligible are the backends that new connections get: of a node's own with a Local policy. none tells whether there are none at all.
func (svc *soakService) eligible(st *soakState, local *soakNode) (set map[netip.AddrPort]bool, none bool) {
	pick := func(n *soakNode) map[netip.AddrPort]bool {
		for _, want := range []readiness{ready, serving} {
			out := map[netip.AddrPort]bool{}
			for b, how := range st.endpoints {
				if how == want && (n == nil || svc.backend[b].node == n) {
					out[b] = true
				}
			}
			if len(out) > 0 {
				return out
			}
		}
		return nil
	}
	set = pick(local)
	return set, len(pick(nil)) == 0
}

// differs tells what a node's kernel has otherwise.
func (n *soakNode) differs(svc *soakService, uid string, st *soakState) string {
	rows, err := bpf.ReadServices(n.pins)
	if err != nil {
		return err.Error()
	}
	found := 0
	for _, r := range rows {
		if r.Owner != uid {
			continue
		}
		found++
		v6 := r.Frontends == nil || r.Frontends[0].Addr.Addr().Is6()
		want, _ := svc.eligible(st, nil)
		near, _ := svc.eligible(st, n)
		if len(r.Backends) != len(st.endpoints) {
			return fmt.Sprintf("%s has %d backends of %d", r.Name, len(r.Backends), len(st.endpoints))
		}
		have := map[netip.AddrPort]bpf.Backend{}
		for _, b := range r.Backends {
			have[b.Addr] = b
		}
		for v4 := range st.endpoints {
			at := v4
			if v6 {
				at = svc.v6[v4]
			}
			b, ok := have[at]
			if !ok || b.All != want[v4] || (st.internal || st.extern) && b.Local != near[v4] {
				return fmt.Sprintf("%s has %v for %s", r.Name, b, at)
			}
		}
		for _, f := range r.Frontends {
			if f.Kind == bpf.ClusterIP && (f.Inside == bpf.Local) != st.internal || f.Kind == bpf.NodePort && (f.Outside == bpf.Local) != st.extern {
				return fmt.Sprintf("%s: %s", r.Name, f)
			}
		}
	}
	if want := 4; st.absent && found != 0 || !st.absent && found != want {
		return fmt.Sprintf("%d rows", found)
	}
	return ""
}

// asker is a client of a Service.
type asker struct {
	what    string
	svc     *soakService
	space   podnet.Space
	network string
	to      netip.AddrPort
	node    *soakNode // that the Service is asked at
	outside bool
}

// clients are those of a Service in one family: a process of a node, a pod, and a machine outside, over TCP and UDP.
func (s *soak) clients(svc *soakService, family int) (out []asker) {
	n := s.nodes[svc.index%2]
	p := s.pods[(svc.index+1)%len(s.pods)]
	other := s.nodes[(svc.index+1)%2]
	clusterIP := netip.AddrPortFrom(svc.ips[family], 80)
	for _, network := range []string{"tcp", "udp"} {
		out = append(out,
			asker{"a process of " + n.name, svc, n.space, network, clusterIP, n, false},
			asker{"a pod of " + p.node.name, svc, p.space, network, clusterIP, p.node, false},
			asker{"outside", svc, s.outside, network, netip.AddrPortFrom(other.addrs[family], uint16(soakNodePort+svc.index)), other, true})
	}
	return out
}

func (c asker) String() string {
	return fmt.Sprintf("%s by %s, asked from %s", c.to, c.network, c.what)
}

// outcome of a question.
type outcome string

const (
	answered outcome = "answered"
	refused  outcome = "refused"
	silent   outcome = "unanswered"
	denied   outcome = "denied" // the node's own, as a packet that is dropped
	reset    outcome = "reset"
)

func outcomeOf(err error) outcome {
	switch {
	case err == nil:
		return answered
	case errors.Is(err, syscall.ECONNREFUSED):
		return refused
	case errors.Is(err, syscall.EPERM):
		return denied
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.EPIPE):
		return reset
	}
	return silent
}

// patiently asks a question, and has its patience anew when everything has stood still meanwhile.
func (s *soak) patiently(ctx context.Context, c asker) (conn net.Conn, answer string, err error) {
	for {
		from := time.Now()
		conn, answer, err = c.once(ctx, conn)
		if outcomeOf(err) != silent || ctx.Err() != nil || !s.stoodSince(from) {
			return conn, answer, err
		}
		s.again.Add(1)
	}
}

// once asks over a connection, or goes on with one, and asks again for a datagram that may have been lost.
func (c asker) once(ctx context.Context, asked net.Conn) (conn net.Conn, answer string, err error) {
	ctx, cancel := context.WithTimeout(ctx, soakPatience)
	defer cancel()
	if conn = asked; conn == nil {
		if conn, err = c.space.Dial(ctx, c.network, c.to.String()); err != nil {
			return nil, "", err
		}
	}
	b := make([]byte, 100)
	for deadline, _ := ctx.Deadline(); ; {
		patience := deadline
		if c.network == "udp" {
			patience = time.Now().Add(time.Second)
		}
		conn.SetDeadline(patience)
		if err = nil; asked == nil || c.network == "udp" {
			_, err = conn.Write([]byte("?"))
		}
		if err == nil {
			var n int
			n, err = conn.Read(b)
			answer = string(b[:n])
		}
		if c.network == "tcp" || !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			return conn, answer, err
		}
	}
}

// ask asks again and again, and judges what comes.
func (s *soak) ask(ctx context.Context, c asker) error {
	for ctx.Err() == nil {
		if err := s.question(ctx, c); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

func (s *soak) question(ctx context.Context, c asker) error {
	from := time.Now()
	conn, answer, err := s.patiently(ctx, c)
	to := time.Now()
	if conn != nil {
		defer conn.Close()
	}
	if end, _ := ctx.Deadline(); ctx.Err() != nil || !to.Before(end) {
		return nil
	}
	states := c.svc.during(from, to)
	got := outcomeOf(err)
	s.asked.Add(1)
	if len(states) == 1 {
		s.strict.Add(1)
	}
	n, _ := s.outcomes.LoadOrStore(got, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
	wrong := c.judge(got, answer, states)
	if wrong == "" {
		return nil
	}
	told := fmt.Sprintf("%s: %s (%v), after %v; %s", c, wrong, err, to.Sub(from), c.svc.tell(states))
	if got == silent {
		told += "\n" + s.evidence(c, conn)
	}
	return errors.New(told)
}

func (svc *soakService) tell(states []*soakState) string {
	var lines []string
	for _, st := range states {
		lines = append(lines, fmt.Sprintf("since %s until %s: absent %v, internal Local %v, external Local %v, %v",
			st.since.Format(time.StampMilli), st.until.Format(time.StampMilli), st.absent, st.internal, st.extern, st.endpoints))
	}
	return strings.Join(lines, "\n")
}

// judge tells what is wrong with an outcome, given the states that may have been met.
func (c asker) judge(got outcome, answer string, states []*soakState) string {
	if got == answered {
		b, err := netip.ParseAddrPort(answer)
		if err != nil || c.svc.backend[b] == nil {
			return fmt.Sprintf("answered by %q, no backend of this Service", answer)
		}
		// Where the Service is not there, a question leaves the node by its routes; the next node that it comes to may have the Service again.
		passed := slices.ContainsFunc(states, func(st *soakState) bool { return st.absent })
		for _, st := range states {
			if c.may(st, b, c.node) || passed && c.may(st, b, c.svc.backend[b].node) {
				return ""
			}
		}
		return "answered by " + answer
	}
	for _, st := range states {
		local := st.internal && !c.outside || st.extern && c.outside
		var at *soakNode
		if local {
			at = c.node
		}
		set, none := c.svc.eligible(st, at)
		switch {
		case st.absent: // the address is nobody's: refused by the node, or lost where the routes lead
			return ""
		case none && got == refused:
			return ""
		case local && len(set) == 0 && !none && (got == silent || got == denied):
			return ""
		}
	}
	// What was begun with one state met the next: its backend is no more.
	if len(states) > 1 && (got == reset || got == silent || got == refused && c.network == "udp") {
		last := states[len(states)-1]
		for _, st := range states {
			for b := range st.endpoints {
				if _, still := last.endpoints[b]; !still {
					return ""
				}
			}
		}
	}
	return string(got)
}

// may tells whether a backend may answer in a state, to who asks at a node: of datagrams also one that has no new flows any more, for ports are used again.
func (c asker) may(st *soakState, b netip.AddrPort, asked *soakNode) bool {
	if st.absent {
		return false
	}
	if _, member := st.endpoints[b]; member && c.network == "udp" {
		return true
	}
	var at *soakNode
	if st.internal && !c.outside || st.extern && c.outside {
		at = asked
	}
	set, _ := c.svc.eligible(st, at)
	return set[b]
}

// hold keeps a connection, and asks over it again and again. It may end only if its backend was deleted while it was there, whatever else became of
// its Service and of agents.
func (s *soak) hold(ctx context.Context, c asker) error {
	if c.network != "tcp" {
		return nil
	}
	for ctx.Err() == nil {
		from := time.Now()
		conn, err := c.space.Dial(ctx, "tcp", c.to.String())
		if err != nil {
			select { // that is judged elsewhere
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		if err := s.held(ctx, c, conn, from); err != nil {
			return err
		}
	}
	return nil
}

// held asks over a connection that was begun at a time, until it ends.
func (s *soak) held(ctx context.Context, c asker, conn net.Conn, from time.Time) error {
	defer conn.Close()
	var backend string
	var err error
	for ctx.Err() == nil {
		conn.SetDeadline(time.Now().Add(soakPatience))
		var n int
		b := make([]byte, 100)
		asked := time.Now()
		if _, err = conn.Write([]byte("?")); err == nil {
			n, err = conn.Read(b)
		}
		for outcomeOf(err) == silent && ctx.Err() == nil && s.stoodSince(asked) {
			s.again.Add(1)
			asked = time.Now()
			conn.SetDeadline(asked.Add(soakPatience))
			n, err = conn.Read(b)
		}
		if err != nil {
			break
		}
		answer := string(b[:n])
		if backend != "" && backend != answer {
			return fmt.Errorf("%s: one connection was answered by %s and by %s", c, backend, answer)
		}
		backend = answer
		s.kept.Add(1)
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	if end, _ := ctx.Deadline(); ctx.Err() != nil || backend == "" || !time.Now().Before(end) {
		return nil
	}
	b := netip.MustParseAddrPort(backend)
	states := c.svc.during(from, time.Now())
	if slices.ContainsFunc(states, func(st *soakState) bool {
		_, member := st.endpoints[b]
		return !st.absent && !member
	}) {
		return nil
	}
	told := fmt.Sprintf("%s: the connection to %s ended (%v) after %v, and its backend was never gone; %s", c, backend, err, time.Since(from), c.svc.tell(states))
	if outcomeOf(err) == silent {
		told += "\n" + s.evidence(c, conn)
	}
	return errors.New(told)
}

// watchTime notes when everything stood still, as on a machine that slept: patience ran out then that nobody had.
func (s *soak) watchTime(ctx context.Context) {
	for last := time.Now(); ctx.Err() == nil; last = time.Now() {
		time.Sleep(stoodPause)
		if time.Since(last) > 5*time.Second {
			s.stood.Store(time.Now().UnixNano())
			s.stalls.Add(1)
		}
	}
}

const stoodPause = 100 * time.Millisecond

// stoodSince tells whether everything has stood still since a time.
func (s *soak) stoodSince(from time.Time) bool {
	time.Sleep(2 * stoodPause) // watchTime goes on, too
	return s.stood.Load() > from.UnixNano()
}

// kill kills one node's agent after the other.
func (s *soak) kill(ctx context.Context) error {
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(4 * time.Second):
		}
		if slices.ContainsFunc(s.services, func(svc *soakService) bool { return svc.waits() > 15*time.Second }) {
			continue // on a machine so slow no agent would live to follow the API
		}
		n := s.nodes[i%len(s.nodes)]
		pid, err := agentWith(n.pins)
		if err != nil {
			return err
		}
		if pid == 0 {
			continue // it is being started
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
		s.killed.Add(1)
	}
}

// agentWith finds the agent of a node by its data folder.
func agentWith(pins string) (int, error) {
	dir := strings.TrimSuffix(pins, "/bpf")
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil {
			continue
		}
		args := strings.Split(string(line), "\x00")
		if slices.Contains(args, "agent") && !strings.Contains(args[0], "supervise") && slices.ContainsFunc(args, func(a string) bool { return a == dir || a == "--data-dir="+dir }) {
			return pid, nil
		}
	}
	return 0, nil
}
