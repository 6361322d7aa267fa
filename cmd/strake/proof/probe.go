package proof

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/reference"
)

// Probe is one packet that was sent, and what was expected of it.
type Probe struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Port     uint16 `json:"port"` // TCP
	Expected string `json:"expected"`
	Why      string `json:"why"`
	Got      string `json:"got"`
	OK       bool   `json:"ok"`
}

// What becomes of a probe. Whether something listens does not matter: who refuses has got the packet.
const (
	Passes = "passes"
	Silent = "no answer"
)

func (p Probe) String() string {
	return fmt.Sprintf("%s to %s, %d/TCP: %s, expected: %s (%s)", p.From, p.To, p.Port, p.Got, p.Expected, p.Why)
}

// probeTimeout is how long an answer may take; a packet that is dropped takes that long, and so does its repetition.
const probeTimeout = 1500 * time.Millisecond

// atOnce bounds how many probes are under way.
const atOnce = 32

// question is a probe to be sent.
type question struct {
	Probe
	netns string
	to    netip.AddrPort
	allow bool
}

// Send sends real packets from pods of this node to pods of any, half of them along paths that policies allow and half along others, as far
// as there are both, and tells what became of most of them. What differs from the expectation is sent again after a while.
func Send(ctx context.Context, n Node, most int) ([]Probe, error) {
	state, attached, err := n.state(ctx)
	if err != nil {
		return nil, err
	}
	Place(&state, n.Name, attached)
	list, err := questions(state, attached, n.Name)
	if err != nil {
		return nil, err
	}
	chosen := choose(list, most)
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range chosen {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			q := &chosen[i]
			for range 2 { // the cluster may have changed, or the machine been busy
				q.Got = connect(ctx, q.netns, q.to)
				if q.OK = q.Got == q.Expected; q.OK || ctx.Err() != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	out := make([]Probe, len(chosen))
	for i, q := range chosen {
		out[i] = q.Probe
	}
	return out, ctx.Err()
}

// questions are all probes that make sense: from each pod here to each pod, on the ports that the pod names or policies speak of.
func questions(s netpol.State, attached []cni.Allocation, node string) ([]question, error) {
	truth, err := reference.New(s)
	if err != nil {
		return nil, err
	}
	var out []question
	for _, from := range s.Pods {
		if from.Spec.NodeName != node || !alive(from) {
			continue
		}
		for _, to := range s.Pods {
			if !alive(to) || from.UID == to.UID {
				continue
			}
			for _, src := range from.Status.PodIPs {
				for _, dst := range to.Status.PodIPs {
					a, aerr := netip.ParseAddr(src.IP)
					b, berr := netip.ParseAddr(dst.IP)
					i := slices.IndexFunc(attached, func(x cni.Allocation) bool { return x.Netns != "" && slices.Contains(x.Addrs, a) })
					if aerr != nil || berr != nil || a.Is4() != b.Is4() || i < 0 {
						continue
					}
					for _, port := range portsTo(s, to) {
						f := netpol.Flow{Protocol: netpol.TCP, Port: port}
						f.From.Pod.Namespace, f.From.Pod.Name, f.From.Addr = from.Namespace, from.Name, a
						f.To.Pod.Namespace, f.To.Pod.Name, f.To.Addr = to.Namespace, to.Name, b
						v, err := truth.Judge(f)
						if err != nil {
							return nil, err
						}
						q := question{netns: attached[i].Netns, to: netip.AddrPortFrom(b, port), allow: v.Allowed}
						q.Probe = Probe{From: fmt.Sprintf("%s/%s (%s)", from.Namespace, from.Name, a), To: fmt.Sprintf("%s/%s (%s)", to.Namespace, to.Name, b), Port: port, Expected: Passes, Why: v.Ingress.Why}
						if !v.Allowed {
							q.Expected = Silent
						}
						if !v.Egress.Allowed {
							q.Why = v.Egress.Why
						}
						out = append(out, q)
					}
				}
			}
		}
	}
	return out, nil
}

func alive(p *corev1.Pod) bool {
	return !p.Spec.HostNetwork && p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil
}

// otherPort is one that hardly anybody names.
const otherPort = 61

// portsTo are the pod's own TCP ports, those that policies name by number, and another one.
func portsTo(s netpol.State, p *corev1.Pod) []uint16 {
	out := []uint16{otherPort}
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if port.Protocol == corev1.ProtocolTCP || port.Protocol == "" {
				out = append(out, uint16(port.ContainerPort))
			}
		}
	}
	for _, np := range s.NetworkPolicies {
		if np.Namespace != p.Namespace {
			continue
		}
		for _, r := range np.Spec.Ingress {
			for _, port := range r.Ports {
				if port.Port != nil && port.Port.IntVal > 0 && (port.Protocol == nil || *port.Protocol == corev1.ProtocolTCP) {
					out = append(out, uint16(port.Port.IntVal))
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// choose takes some by lot, of both kinds as many as of the other if there are.
func choose(list []question, most int) []question {
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	if most <= 0 || len(list) <= most {
		return list
	}
	var kinds [2][]question
	for _, q := range list {
		k := 0
		if q.allow {
			k = 1
		}
		kinds[k] = append(kinds[k], q)
	}
	denied := min(len(kinds[0]), max(most/2, most-len(kinds[1])))
	return append(kinds[0][:denied:denied], kinds[1][:min(len(kinds[1]), most-denied)]...)
}

// connect opens a connection from a network namespace, and closes it.
func connect(ctx context.Context, netns string, to netip.AddrPort) string {
	got := make(chan string, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		got <- func() string {
			ns, err := os.Open(netns)
			if err != nil {
				return err.Error()
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Sprintf("enter the pod's network namespace: %v", err)
			}
			d := net.Dialer{Timeout: probeTimeout, FallbackDelay: -1}
			c, err := d.DialContext(ctx, "tcp", to.String())
			var timeout net.Error
			switch {
			case err == nil:
				c.Close()
				return Passes
			case errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET):
				return Passes
			case errors.As(err, &timeout) && timeout.Timeout():
				return Silent
			}
			return err.Error()
		}()
	}()
	return <-got
}
