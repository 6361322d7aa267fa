package dns

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/mirror"
)

// fakeNameServers fails once.
type fakeNameServers struct {
	mu     sync.Mutex
	failed bool
	told   []netip.AddrPort
}

func (f *fakeNameServers) SetNameServers(list []netip.AddrPort) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.failed {
		f.failed = true
		return errors.New("not now")
	}
	f.told = list
	return nil
}

func (f *fakeNameServers) are(want ...string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []netip.AddrPort
	for _, text := range want {
		list = append(list, netip.MustParseAddrPort(text))
	}
	return slices.Equal(f.told, list)
}

// The kernel is told where the cluster's own DNS is, over UDP, and what of names it has to leave to that.
func TestBesideTheClustersDNS(t *testing.T) {
	tcp, udp := port("dns-tcp", corev1.ProtocolTCP, 53), port("dns", corev1.ProtocolUDP, 53)
	ports := append(endpointPort("dns", corev1.ProtocolUDP, 1053), endpointPort("dns-tcp", corev1.ProtocolTCP, 1054)...)
	client, watched := newClient(append(objects(), service("kube-dns", []string{"10.96.0.10", "fd00:96::a"}, tcp, udp), endpoints("kube-dns", "a", ports, "10.244.0.30", "10.244.0.31!"))...)
	ctx, cancel := context.WithCancel(context.Background())
	m := mirror.New(client, "")
	state, servers := &fakeState{}, &fakeNameServers{}
	names, err := NewNames(m, newTable(0), state, "cluster.local")
	must(t, err)
	records := NewKernelRecords(m, &fakeRecords{rows: map[string][]bpf.Record{}, changed: make(chan struct{}, 1)}, "cluster.local")
	b, err := NewBeside(m, servers, names, records, "default/kube-dns")
	must(t, err)
	is := func(want bpf.NamesState) func() bool {
		return func() bool { got, _ := state.NamesState(); return got == want }
	}
	if !is(bpf.NamesState{Off: true})() {
		t.Error("names are answered before the Corefile was read")
	}
	var done sync.WaitGroup
	done.Go(func() { m.Run(ctx) })
	done.Go(func() { must(t, b.Run(ctx)) })
	done.Go(func() { must(t, b.FollowCorefile(ctx, client, "kube-system/coredns")) })
	t.Cleanup(func() { cancel(); done.Wait() })
	for range 4 { // Services, EndpointSlices, namespaces and the ConfigMap
		<-watched
	}
	await(t, "the DNS's addresses", func() bool {
		return servers.are("10.96.0.10:53", "10.244.0.30:1053", "10.244.0.31:1053", "[fd00:96::a]:53")
	})
	await(t, "the usual Corefile, as there is none", is(bpf.NamesState{TTL: 30, Pods: true}))
	configs := client.CoreV1().ConfigMaps("kube-system")
	for i, c := range []struct {
		corefile string
		want     bpf.NamesState
	}{
		{".:53 {\n kubernetes cluster.local in-addr.arpa {\n  pods insecure\n  fallthrough in-addr.arpa\n  ttl 17\n }\n forward . /etc/resolv.conf {\n  max_fails 3\n }\n cache 30 {\n  prefetch 2\n }\n}", bpf.NamesState{TTL: 17, Pods: true}},
		{".:53 {\n kubernetes cluster.local\n template ANY ANY {\n  rcode NXDOMAIN\n }\n}", bpf.NamesState{TTL: 5, Off: true}},
		{".:53 {\n kubernetes cluster.local {\n  namespaces default\n }\n}", bpf.NamesState{TTL: 5, Off: true}},
		{".:53 {\n kubernetes cluster.local\n hosts {\n  192.0.2.1 a.cluster.local\n  fallthrough\n }\n}", bpf.NamesState{TTL: 5, Off: true}},
		{".:53 {\n kubernetes cluster.local\n hosts {\n  192.0.2.1 a.example\n  fallthrough\n }\n}", bpf.NamesState{TTL: 5}},
		{".:53 {\n kubernetes other.local\n}", bpf.NamesState{TTL: 5, Off: true}},
		{"rubbish {", bpf.NamesState{TTL: 30, Off: true, Pods: true}},
	} {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns"}, Data: map[string]string{"Corefile": c.corefile}}
		state.mu.Lock()
		state.fail = i % 3 // what the kernel could not be told is told again
		state.mu.Unlock()
		if i == 0 {
			_, err = configs.Create(ctx, m, metav1.CreateOptions{})
		} else {
			_, err = configs.Update(ctx, m, metav1.UpdateOptions{})
		}
		must(t, err)
		await(t, c.corefile, is(c.want))
	}
	must(t, configs.Delete(ctx, "coredns", metav1.DeleteOptions{}))
	await(t, "the usual Corefile, as there is none any more", is(bpf.NamesState{TTL: 30, Pods: true}))
	must(t, client.CoreV1().Services("default").Delete(ctx, "kube-dns", metav1.DeleteOptions{}))
	await(t, "no DNS any more", func() bool { return servers.are() })
}
