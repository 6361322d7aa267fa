package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A backend that another plugin's pod is: neither an endpoint of ours nor of another node of ours. One of this node is known by its Service.
func TestBackendsOfOtherPlugins(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		for name, proto := range protocols {
			front, client, stranger := at(f.node, 30080), at(f.far, 4000), at(f.of("10.88.0.5", "fd00:10:88::5"), 8080)
			for _, c := range []struct {
				what              string
				backend           Backend
				scope             Scope
				from              netip.AddrPort
				verdict           uint32
				program           string
				counted, answered string
				answer            uint32
			}{
				{"elsewhere", Backend{Addr: stranger, All: true}, All, at(f.node, 4000), actRedirect, uplinkProgram, "uplink_to_remote", "remote_to_uplink", actRedirect},
				{"of this node", Backend{Addr: stranger, All: true, Local: true}, Local, client, actOK, egressProgram, "uplink_to_node", "node_to_uplink", actOK},
			} {
				t.Run(fmt.Sprint(f.name, " ", name, " ", c.what), func(t *testing.T) {
					l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: []Frontend{{Addr: front, Kind: NodePort, Outside: c.scope}}, Backends: []Backend{c.backend}})
					out := l.step(t, "the question", uplinkProgram, l.uplink, frame(proto, client, front, nil), c.verdict, c.counted, c.from, stranger)
					l.step(t, "the answer", c.program, l.uplink, reply(out), c.answer, c.answered, front, client)
					l.service(t)
					must(t, clearFlows(l.d))
				})
			}
		}
	}
}

// Another plugin's pod that no hook serves asks one of this node: what the host's stack sends out comes back in as from the address that was asked, and
// so does the answer. What an error quotes is turned likewise, both ways.
func TestPodsOfOtherPluginsAmongThemselves(t *testing.T) {
	l := newServiceLab(t)
	l.from = l.otherVeth
	for _, f := range families {
		for name, proto := range protocols {
			t.Run(f.name+" "+name, func(t *testing.T) {
				front, asks, answers := at(f.vip(), 80), at(f.of("10.88.0.7", "fd00:10:88::7"), 4000), at(f.of("10.88.0.5", "fd00:10:88::5"), 8080)
				l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: []Frontend{{Addr: front}}, Backends: []Backend{{Addr: answers, All: true, Local: true}}})
				step := func(what string, in []byte, counted string, src, dst netip.AddrPort) []byte {
					t.Helper()
					out := l.step(t, what, egressProgram, l.uplink, in, actRedirect, counted, src, dst)
					if !bytes.Equal(out[:6], in[6:12]) {
						t.Errorf("%s goes to %x, not to the uplink's own %x", what, out[:6], in[6:12])
					}
					return out
				}
				first := frame(proto, asks, front, nil)
				step("the question", first, "uplink_to_node", at(f.vip(), 4000), answers)
				first[11]++ // the uplink gets another MAC address
				turned := step("a question from another MAC address", first, "uplink_to_node", at(f.vip(), 4000), answers)
				answer := reply(turned)
				copy(answer[6:12], first[6:12])
				back := step("the answer", answer, "node_to_uplink", front, asks)
				for _, c := range []struct {
					what       string
					from, to   netip.AddrPort // of the error
					about      []byte
					wantFrom   netip.AddrPort
					wantTo     netip.AddrPort
					qsrc, qdst netip.AddrPort // of what it quotes in the end
				}{
					{"an error about the question", answers, front, turned, front, asks, asks, front},
					{"an error about the answer", asks, front, back, front, answers, answers, at(f.vip(), 4000)},
				} {
					in := f.about(c.from.Addr().String(), c.to.Addr().String(), c.about)
					verdict, out, _ := l.at(t, egressProgram, l.uplink, in)
					out = out[:len(in)]
					src, dst := addrs(out)
					if qs, qd := quote(out); verdict != actRedirect || src != c.wantFrom.Addr() || dst != c.wantTo.Addr() || qs != c.qsrc || qd != c.qdst {
						t.Errorf("%s: verdict %d, from %s to %s about a packet from %s to %s", c.what, verdict, src, dst, qs, qd)
					}
					checkSums(t, out)
				}
				// Another one who asks from the same port is told apart.
				other := at(f.of("10.88.0.8", "fd00:10:88::8"), 4000)
				in := frame(proto, other, front, nil)
				verdict, out := l.run(t, egressProgram, l.uplink, in)
				out = out[:len(in)]
				if src, dst := ends(out); verdict != actRedirect || src.Addr() != front.Addr() || src.Port() == 4000 || dst != answers {
					t.Errorf("another's question: verdict %d, from %s to %s", verdict, src, dst)
				}
				step("another's answer", reply(out), "node_to_uplink", front, other)
				l.service(t)
				must(t, clearFlows(l.d))
			})
		}
	}
}

func clearFlows(d *Datapath) error {
	for _, name := range []string{"flows_open", "flows_passing"} {
		var k netFlowKey
		var v netFlow
		var all []netFlowKey
		it := d.net.Maps[name].Iterate()
		for it.Next(&k, &v) {
			all = append(all, k)
		}
		for _, k := range all {
			if err := d.net.Maps[name].Delete(k); err != nil {
				return err
			}
		}
	}
	return nil
}

// A backend on another node has as many clients at once as there are ports outside of the kernel's range.
func TestManyClientsOfOneBackend(t *testing.T) {
	d := withPods(t, func(c *Config) { c.NodeAddrs = []netip.Addr{netip.MustParseAddr(nodeIP)} })
	_, err := d.Remotes().Replace("b", []Remote{{Prefix: netip.MustParsePrefix("10.244.1.0/24"), Node: netip.MustParseAddr("192.0.2.20")}})
	must(t, err)
	must(t, d.net.Maps["path"].Put(uint32(0), netPath{Tunnel: 1, Mtu: 1400}))
	_, err = d.LoadBalancers().Replace("u", []LoadBalancer{{Name: "ns/web:http", Protocol: 17, Frontends: fronts(NodePort, at(nodeIP, 30080)), Backends: backs(at(remote, 8080))}})
	must(t, err)
	local, err := readLocalPorts()
	must(t, err)
	seen := map[uint16]netip.Addr{}
	client := netip.MustParseAddr("198.51.100.1")
	for range 9000 { // twice as many as there are above the kernel's range
		client = client.Next()
		verdict, out := run(t, d.net.Programs[uplinkProgram], frame(17, netip.AddrPortFrom(client, uint16(local.first)), at(nodeIP, 30080), nil))
		src, _ := ends(out)
		if verdict != actRedirect || src.Addr().String() != nodeIP {
			t.Fatalf("%s: verdict %d, from %s; %d clients before", client, verdict, src, len(seen))
		}
		if other, taken := seen[src.Port()]; taken {
			t.Fatalf("port %d is that of %s and of %s", src.Port(), other, client)
		}
		if p := uint32(src.Port()); p < 1024 || (p >= local.first && p <= local.last) || p == 30080 {
			t.Fatalf("port %d", p)
		}
		seen[src.Port()] = client
	}
}

// What SCTP sockets of the node itself ask leaves its uplink: no hook sees those.
func TestServiceOfTheNode(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		for i, c := range []struct {
			what, backend, counted string
			verdict                uint32
			answerAt               string
			answerIf               int
			answer                 uint32
			answered               string
		}{
			{"a pod", f.pod, "uplink_to_pod", actRedirect, podProgram, l.podVeth, actRedirect, "pod_to_uplink"},
			{"a pod of another node", f.remote(), "uplink_to_remote", actRedirect, uplinkProgram, l.uplink, actOK, "remote_to_uplink"},
			{"outside of the cluster", f.hop, "uplink_to_remote", actRedirect, uplinkProgram, l.uplink, actOK, "remote_to_uplink"},
		} {
			t.Run(f.name+" "+c.what, func(t *testing.T) {
				client, front := at(f.node, uint16(4000+i)), at(f.vip(), 80)
				set := func(backends ...Backend) {
					l.service(t, LoadBalancer{Name: "ns/web:sctp", Protocol: 132, Frontends: []Frontend{{Addr: front}}, Backends: backends})
				}
				set(backs(at(c.backend, 8080))...)
				out := l.step(t, "the question", egressProgram, l.uplink, frame(132, client, front, []byte("question")), c.verdict, c.counted, client, at(c.backend, 8080))
				l.step(t, "the answer", c.answerAt, c.answerIf, reply(out), c.answer, c.answered, front, client)
				set()
				l.step(t, "without a backend", egressProgram, l.uplink, frame(132, client, front, nil), actShot, "drop_no_backend", netip.AddrPort{}, netip.AddrPort{})
			})
		}
	}
}

// Machines behind the node, such as somebody else's containers on it, have the Services where the node's routes lead there by the uplink.
func TestServicesForMachinesBehindTheNode(t *testing.T) {
	l := newLab(t)
	behind := newSpace(t)
	l.pair(t, "behind", behind)
	address(t, "behind", "172.31.7.1/24")
	address(t, "behind", "fd00:172:31:7::1/64")
	behind.behind(t, "172.31.7.1", "fd00:172:31:7::1", "172.31.7.2", "fd00:172:31:7::2")
	for _, f := range families {
		l.node.route(t, f.of("0.0.0.0/0", "::/0"), f.outside())
	}
	// A second one, which serves: its answers pass the host's stack alone. Its own question comes back to it.
	serves := newSpace(t)
	l.pair(t, "serves", serves)
	address(t, "serves", "172.31.8.1/24")
	address(t, "serves", "fd00:172:31:8::1/64")
	serves.behind(t, "172.31.8.1", "fd00:172:31:8::1", "172.31.8.2", "fd00:172:31:8::2")
	serves.serve(t, "serves", 8080)
	must(t, os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0))
	l.amongThem(t, [2]string{"172.31.8.2", "fd00:172:31:8::2"}, behind, serves)
	l.service(t, "10.96.0.5:80", "[fd00:10:96::5]:80")
	for _, f := range families {
		for _, network := range []string{"tcp", "udp"} {
			seen := map[string]int{}
			for i := range 30 {
				c := behind.dial(t, network, at(f.service, 80).String())
				for range 2 {
					got, err := exchange(c, fmt.Sprint(i))
					name, echoed, _ := strings.Cut(got, " ")
					if err != nil || echoed != fmt.Sprint(i) {
						t.Fatalf("%s %s: %q, %v", f.name, network, got, err)
					}
					seen[name]++
				}
			}
			if seen["pod0"] == 0 || seen["pod1"] == 0 {
				t.Errorf("%s %s: backends %v", f.name, network, seen)
			}
		}
	}
}

// behind gives a namespace addresses at its eth0, and routes over the node's.
func (s space) behind(t testing.TB, gateway, gateway6, own, own6 string) {
	t.Helper()
	s.within(t, func() error {
		up(t, "lo")
		address(t, "eth0", own+"/24")
		address(t, "eth0", own6+"/64")
		return nil
	})
	s.route(t, "0.0.0.0/0", gateway)
	s.route(t, "::/0", gateway6)
}

// amongThem lets some ask a Service whose only backend, at port 8080 of these addresses, is another plugin's pod of this node, called "serves".
func (l *lab) amongThem(t *testing.T, backend [2]string, askers ...space) {
	t.Helper()
	for i, f := range families {
		front := at(f.of("10.96.0.8", "fd00:10:96::8"), 80)
		for network, proto := range map[string]uint8{"tcp": 6, "udp": 17} {
			_, err := l.d.LoadBalancers().Replace("among", []LoadBalancer{{Name: "among/them:", Protocol: proto, Frontends: []Frontend{{Addr: front}},
				Backends: []Backend{{Addr: at(backend[i], 8080), All: true, Local: true}}}})
			must(t, err)
			for n, asker := range askers {
				c := asker.dial(t, network, front.String())
				for q := range 3 {
					if got, err := exchange(c, fmt.Sprint(q)); err != nil || got != fmt.Sprint("serves ", q) {
						t.Errorf("%s %s, asker %d: %q, %v", f.name, network, n, got, err)
					}
				}
			}
		}
	}
	_, err := l.d.LoadBalancers().Replace("among", nil)
	must(t, err)
}

// Pods that another plugin has put at a bridge, which counts as an uplink, have each other by Services, and themselves.
func TestServicesForPodsOfABridge(t *testing.T) {
	l := newLab(t)
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}}))
	address(t, "cni0", "172.31.9.1/24")
	address(t, "cni0", "fd00:172:31:9::1/64")
	bridge := device(t, "cni0")
	var pods [2]space
	for i := range pods {
		pods[i] = newSpace(t)
		name := fmt.Sprint("port", i)
		l.pair(t, name, pods[i])
		must(t, netlink.LinkSetMaster(device(t, name), bridge))
		pods[i].behind(t, "172.31.9.1", "fd00:172:31:9::1", fmt.Sprint("172.31.9.", 2+i), fmt.Sprint("fd00:172:31:9::", 2+i))
	}
	must(t, l.d.AttachUplink(bridge.Attrs().Index))
	pods[0].serve(t, "serves", 8080)
	l.amongThem(t, [2]string{"172.31.9.2", "fd00:172:31:9::2"}, pods[1], pods[0])
}

// What a pod asked and answered is known of it when its row is written again, and by the next agent; another pod begins anew.
func TestEndpointsKeepWhatTheyDid(t *testing.T) {
	l := newServiceLab(t)
	front := at("203.0.113.50", 80)
	l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 17, Frontends: []Frontend{{Addr: front}}, Backends: backs(at(other, 8080))})
	l.at(t, podProgram, l.podVeth, frame(17, at(pod, 4000), front, nil))
	type kept struct{ flags, asks, asked uint8 }
	flags := func(addr string) kept {
		t.Helper()
		var row netEndpoint
		must(t, l.d.net.Maps["endpoints"].Lookup(addr16(netip.MustParseAddr(addr)), &row))
		return kept{row.Flags, row.Asks, row.Asked}
	}
	write := func(owner, addr string, ifindex int, queued bool) {
		t.Helper()
		_, err := l.d.Endpoints().Replace(owner, []Endpoint{{Addr: netip.MustParseAddr(addr), Ifindex: ifindex, PodMAC: podMAC, HostMAC: hostMAC, Queued: queued}})
		must(t, err)
	}
	if flags(pod) != (kept{endpointQuiet, 1, 0}) || flags(other) != (kept{endpointQuiet, 0, 1}) {
		t.Fatalf("flags %x and %x", flags(pod), flags(other))
	}
	write("lab "+pod, pod, l.podVeth, true)
	write("lab "+other, other, l.otherVeth, true)
	if flags(pod) != (kept{endpointQuiet | endpointQueued, 1, 0}) || flags(other) != (kept{endpointQuiet | endpointQueued, 0, 1}) {
		t.Errorf("written again: flags %x and %x", flags(pod), flags(other))
	}
	// Rows of an earlier release have it among the flags.
	for addr, marks := range map[string]uint8{pod: endpointQuiet | endpointAsks, other: 0} {
		key, row := addr16(netip.MustParseAddr(addr)), netEndpoint{}
		must(t, l.d.net.Maps["endpoints"].Lookup(key, &row))
		row.Flags, row.Asks, row.Asked = marks|endpointQueued, 0, 0
		must(t, l.d.net.Maps["endpoints"].Put(key, row))
	}
	again, err := openEndpoints(l.d.net.Maps)
	must(t, err)
	if c, err := again.Replace("lab "+pod, []Endpoint{{Addr: netip.MustParseAddr(pod), Ifindex: l.podVeth, PodMAC: podMAC, HostMAC: hostMAC, Queued: true}}); err != nil || c != (Changes{}) {
		t.Errorf("the next agent: %+v, %v", c, err)
	}
	write("lab "+pod, pod, l.podVeth, false)
	if flags(pod) != (kept{endpointQuiet | endpointAsks, 0, 0}) {
		t.Errorf("of an earlier release: flags %x", flags(pod))
	}
	write("lab "+pod, pod, l.tunnel, true)
	if flags(pod) != (kept{endpointQuiet | endpointQueued, 0, 0}) {
		t.Errorf("another pod: flags %x", flags(pod))
	}
}

// Two first datagrams of a flow that two processors see at one time go to one backend, and leave by one port.
func TestTwoFirstDatagramsAtATime(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("NOT TESTED: this machine has one processor, and the test takes two")
	}
	l := newServiceLab(t)
	front := at("203.0.113.50", 80)
	var backends []netip.AddrPort
	for i := range 16 {
		backends = append(backends, at(other, uint16(8000+i)))
	}
	l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 17, Frontends: []Frontend{{Addr: front}}, Backends: backs(backends...)})
	for name, c := range map[string]struct {
		program string
		ifindex int
		to      netip.AddrPort
	}{"to a Service": {podProgram, l.podVeth, front}, "to the outside": {egressProgram, l.uplink, at("198.51.100.1", 53)}} {
		t.Run(name, func(t *testing.T) {
			const rounds = 3000
			type end struct{ src, dst netip.AddrPort }
			var got [2][rounds]end
			var arrived [rounds]atomic.Int32
			var all errgroup.Group
			for cpu := range 2 {
				all.Go(func() error {
					return l.onCPU(cpu, func() error {
						for i := range rounds {
							in := frame(17, at(pod, uint16(20000+i)), c.to, nil)
							out := make([]byte, len(in)+512)
							context := make([]byte, 192)
							binary.NativeEndian.PutUint32(context[40:], uint32(c.ifindex))
							arrived[i].Add(1)
							for arrived[i].Load() < 2 {
								runtime.Gosched()
							}
							if _, err := l.d.net.Programs[c.program].Run(&ebpf.RunOptions{Data: in, DataOut: out, Context: context}); err != nil {
								return err
							}
							got[cpu][i].src, got[cpu][i].dst = ends(out)
						}
						return nil
					})
				})
			}
			must(t, all.Wait())
			differ := 0
			for i := range rounds {
				if got[0][i] != got[1][i] {
					differ++
				}
			}
			// A flow that the first packet chose is the flow of the next ones as well.
			for i := range 100 {
				_, out := l.run(t, c.program, c.ifindex, frame(17, at(pod, uint16(20000+i)), c.to, nil))
				if src, dst := ends(out); (end{src, dst}) != got[0][i] {
					t.Errorf("flow %d goes from %s to %s, its first datagram from %s to %s", i, src, dst, got[0][i].src, got[0][i].dst)
				}
			}
			if differ > 0 {
				t.Errorf("of %d flows the first two datagrams of %d went two ways", rounds, differ)
			}
		})
	}
}

// onCPU runs a function on one processor, in the node's namespace.
func (l *serviceLab) onCPU(cpu int, do func() error) error {
	var home *os.File
	opened := make(chan error)
	l.do <- func() {
		var err error
		home, err = os.Open("/proc/thread-self/ns/net")
		opened <- err
	}
	if err := <-opened; err != nil {
		return err
	}
	defer home.Close()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		var set unix.CPUSet
		set.Set(cpu)
		result <- errors.Join(unix.Setns(int(home.Fd()), unix.CLONE_NEWNET), unix.SchedSetaffinity(0, &set), do())
	}()
	return <-result
}

// A packet to a Service, or an error about one, that ends anywhere is judged and harms nothing.
func TestTruncatedPacketsToServices(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		front := at(f.vip(), 80)
		for _, proto := range protocols {
			l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: []Frontend{{Addr: front}}, Backends: backs(at(f.pod, 8080))})
			for _, full := range [][]byte{
				frame(proto, at(f.far, 4000), front, []byte("question")), frame(proto, at(f.pod, 8080), at(f.far, 4000), []byte("answer")),
				frame(proto, at(f.pod, 4000), front, []byte("question")), cut(frame(proto, at(f.far, 4000), front, []byte("question")), 7, 0, true),
				f.about(f.far, f.vip(), frame(proto, front, at(f.far, 4000), nil)), f.about(f.pod, f.far, frame(proto, at(f.far, 4000), at(f.pod, 8080), nil)),
			} {
				for n := shortest(full); n <= len(full); n++ {
					for program, ifindex := range map[string]int{podProgram: l.podVeth, toPodProgram: l.podVeth, uplinkProgram: l.uplink, egressProgram: l.uplink} {
						verdict, _ := l.run(t, program, ifindex, full[:n])
						if n < len(full) && program == podProgram && verdict != actShot {
							t.Errorf("%d of %x: verdict %d", n, full, verdict)
						}
					}
				}
			}
		}
	}
}
