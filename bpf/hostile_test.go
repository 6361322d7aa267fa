package bpf

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
)

// content is the part of a whole, unfragmented packet that has a checksum of its own: where its header begins and where it ends.
type content struct {
	proto      byte
	begin, end int
	ok         bool // it is there
}

// contentOf finds it by other means than the programs do.
func contentOf(b []byte) (c content) {
	if len(b) < 34 {
		return c
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		c.proto, c.begin, c.end = b[23], 14+int(b[14]&15)*4, 14+int(binary.BigEndian.Uint16(b[16:]))
		if b[14]>>4 != 4 || b[14]&15 < 5 || binary.BigEndian.Uint16(b[20:])&0x3fff != 0 {
			return c
		}
	case 0x86dd:
		if len(b) < 54 || b[14]>>4 != 6 {
			return c
		}
		c.proto, c.begin, c.end = b[20], 54, 54+int(binary.BigEndian.Uint16(b[18:]))
		for slices.Contains([]byte{0, 43, 60, 51}, c.proto) {
			if c.begin+8 > len(b) {
				return c
			}
			next, size := b[c.begin], (int(b[c.begin+1])+1)*8
			if c.proto == 51 {
				size = (int(b[c.begin+1]) + 2) * 4
			}
			c.proto, c.begin = next, c.begin+size
		}
	}
	least := map[byte]int{6: 20, 17: 8, 132: 12, 1: 8, 58: 8}[c.proto]
	c.ok = least > 0 && c.begin+least <= c.end && c.end <= len(b)
	return c
}

// repair makes the lengths and checksums of a packet right where there are any, so that a hostile packet gets as far as an honest one.
func repair(b []byte) {
	if len(b) < 34 {
		return
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		binary.BigEndian.PutUint16(b[16:], uint16(len(b)-14))
	case 0x86dd:
		if len(b) < 54 {
			return
		}
		binary.BigEndian.PutUint16(b[18:], uint16(len(b)-54))
	}
	c := contentOf(b)
	if n := 14 + int(b[14]&15)*4; !isV6(b) && n >= 34 && n <= len(b) {
		b[24], b[25] = 0, 0
		binary.BigEndian.PutUint16(b[24:], ^sum(b[14:n], 0))
	}
	if !c.ok {
		return
	}
	l4 := b[c.begin:c.end]
	if c.proto == 132 {
		clear(l4[8:12])
		binary.LittleEndian.PutUint32(l4[8:], crc32.Checksum(l4, crc32.MakeTable(crc32.Castagnoli)))
		return
	}
	src, dst := addrs(b)
	at := sumAt(c.proto)
	l4[at], l4[at+1] = 0, 0
	binary.BigEndian.PutUint16(l4[at:], max(1, ^sum(l4, pseudo(c.proto, src, dst, len(l4)))))
}

// sumsAreRight tells whether all checksums of a packet are right that there are.
func sumsAreRight(b []byte) bool {
	if len(b) < 34 {
		return true
	}
	if n := 14 + int(b[14]&15)*4; !isV6(b) && (n > len(b) || sum(b[14:n], 0) != 0xffff) {
		return false
	}
	c := contentOf(b)
	if !c.ok {
		return true
	}
	l4 := b[c.begin:c.end]
	if c.proto == 132 {
		whole := slices.Clone(l4)
		clear(whole[8:12])
		return binary.LittleEndian.Uint32(l4[8:]) == crc32.Checksum(whole, crc32.MakeTable(crc32.Castagnoli))
	}
	if c.proto == 17 && binary.BigEndian.Uint16(l4[6:]) == 0 {
		return !isV6(b)
	}
	src, dst := addrs(b)
	return sum(l4, pseudo(c.proto, src, dst, len(l4))) == 0xffff
}

// innermost is a packet that comes within others of its family.
func innermost(b []byte) []byte {
	for {
		switch {
		case len(b) >= 54 && !isV6(b) && b[23] == 4:
			b = slices.Concat(b[:14], b[34:])
		case len(b) >= 94 && isV6(b) && b[20] == 41:
			b = slices.Concat(b[:14], b[54:])
		default:
			return b
		}
	}
}

// hostileLab has everything that a packet may meet.
type hostileLab struct {
	*serviceLab
	at []struct {
		program string
		ifindex int
	}
}

func newHostileLab(t testing.TB) *hostileLab {
	l := &hostileLab{serviceLab: newDriverLab(t, direct)}
	l.tunnelled(t)
	var rows []LoadBalancer
	for _, f := range families {
		third := netip.MustParseAddr(f.hop) // a node without a tunnel
		_, err := l.d.Remotes().Replace("c"+f.name, []Remote{{Prefix: netip.PrefixFrom(third, third.BitLen())}})
		must(t, err)
		for name, proto := range protocols {
			rows = append(rows,
				LoadBalancer{Name: "ns/web:" + name + f.name, Protocol: proto, Frontends: []Frontend{{Addr: at(f.vip(), 80)}, {Addr: at(f.node, 30080), Kind: NodePort}}, Backends: backs(at(f.pod, 8080), at(f.other, 8080), at(f.remote(), 8080))},
				LoadBalancer{Name: "ns/none:" + name + f.name, Protocol: proto, Frontends: []Frontend{{Addr: at(f.vip(), 81)}}},
			)
		}
	}
	l.service(t, rows...)
	must(t, l.d.net.Maps["answers_leave"].Put(uint32(0), uint32(1)))
	for program, ifindex := range map[string]int{podProgram: l.podVeth, toPodProgram: l.podVeth, uplinkProgram: l.uplink, egressProgram: l.uplink, tunnelIn: l.tunnel, tunnelOut: l.tunnel, xdpProgram: l.uplink} {
		l.at = append(l.at, struct {
			program string
			ifindex int
		}{program, ifindex})
	}
	slices.SortFunc(l.at, func(a, b struct {
		program string
		ifindex int
	}) int {
		if a.program < b.program {
			return -1
		}
		return 1
	})
	return l
}

// seeds are honest packets of every kind.
func (l *hostileLab) seeds(t testing.TB) (all [][]byte) {
	for _, f := range families {
		for _, proto := range protocols {
			for _, ends := range [][2]netip.AddrPort{
				{at(f.pod, 4000), at(f.vip(), 80)}, {at(f.far, 4000), at(f.vip(), 80)}, {at(f.far, 4000), at(f.node, 30080)}, {at(f.pod, 4000), at(f.vip(), 81)},
				{at(f.pod, 8080), at(f.far, 4000)}, {at(f.pod, 4000), at(f.far, 443)}, {at(f.far, 443), at(f.node, 62000)}, {at(f.remote(), 8080), at(f.node, 62001)},
				{at(f.pod, 4000), at(f.other, 8080)}, {at(f.pod, 4000), at(f.remote(), 8080)}, {at(f.node, 8081), at(f.far, 4000)},
			} {
				b := frame(proto, ends[0], ends[1], []byte("payload"))
				all = append(all, b, cut(b, 7, 0, true), within(b, f.hop, f.pod, 8080))
				all = append(all, f.about(ends[0].Addr().String(), ends[1].Addr().String(), frame(proto, ends[1], ends[0], []byte("quoted"))))
			}
		}
		all = append(all, frame(17, at(f.pod, 4242), at(f.dns, 53), query(t, "web.default.svc.cluster.local.", 1, true)),
			icmp(f.pod, f.far, f.echo, 0, 1, []byte("ping")), icmp(f.far, f.node, f.echo, 0, 1, []byte("ping")), later(17, f.pod, f.vip(), 7, 16), later(6, f.far, f.vip(), 7, 8))
	}
	return append(all, arpFrame(1, podMAC, pod, other), solicit(pod6, other6),
		extended(frame(6, at(pod6, 4000), at(families[1].vip(), 80), nil), extension(0, 1), extension(60, 1), extension(43, 1)),
		extended(frame(17, at(families[1].far, 4000), at(families[1].vip(), 80), nil), extension(60, 2)),
		options(frame(6, at(pod, 4000), at(families[0].vip(), 80), nil), 1, 1, 1, 1), options(frame(6, at(pod, 1), at(other, 1), nil), 131, 7, 4, 1, 2, 3, 4))
}

// try puts a packet through a program. Whatever it is, the verdict is one that there is, and what was right when it came is right when it goes.
func (l *hostileLab) try(t testing.TB, which byte, in []byte) {
	t.Helper()
	if len(in) < 34 || len(in) < shortest(in) || len(in) > 1500 {
		return
	}
	p := l.at[int(which&0x7f)%len(l.at)]
	if which&0x80 != 0 {
		in = slices.Clone(in)
		repair(in)
	}
	run := &ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+512)}
	if p.program != xdpProgram {
		context := make([]byte, 192)
		binary.NativeEndian.PutUint32(context[40:], uint32(p.ifindex))
		run.Context = context
	} else { // which has nothing to do where there is a tunnel
		must(t, l.d.net.Maps["path"].Put(uint32(0), netPath{Mtu: 1400}))
		defer func() { must(t, l.d.net.Maps["path"].Put(uint32(0), netPath{Tunnel: uint32(l.tunnel), Mtu: 1400})) }()
	}
	var verdict uint32
	result := make(chan error)
	l.do <- func() {
		var err error
		verdict, err = l.d.net.Programs[p.program].Run(run)
		result <- err
	}
	must(t, <-result)
	if p.program == xdpProgram {
		verdict = map[uint32]uint32{xdpPass: actOK, xdpTx: actRedirect}[verdict]
	}
	switch {
	case verdict != actOK && verdict != actShot && verdict != actRedirect:
		t.Fatalf("%s: verdict %d for %x", p.program, verdict, in)
	case verdict == actShot:
	case sumsAreRight(in) && sumsAreRight(innermost(in)) && !sumsAreRight(run.DataOut):
		t.Fatalf("%s, verdict %d: the checksums of %x\nare right, those of what becomes of it are not: %x", p.program, verdict, in, run.DataOut)
	case p.program == podProgram && verdict != actShot && !fromPod(in):
		t.Fatalf("%s, verdict %d: %x is not of the pod", p.program, verdict, in)
	}
}

// Packets that were made to do harm: cut off anywhere, with headers that lie, at every program.
func FuzzHostileFrames(f *testing.F) {
	l := newHostileLab(f)
	for i, b := range l.seeds(f) {
		f.Add(byte(i), b)
		f.Add(byte(i)|0x80, b)
	}
	f.Fuzz(func(t *testing.T, which byte, in []byte) { l.try(t, which, in) })
}

// The same without a fuzzer: packets of all kinds with some bytes changed, cut off, grown, or put together of two.
func TestHostileFrames(t *testing.T) {
	l := newHostileLab(t)
	seeds := l.seeds(t)
	rng := rand.New(rand.NewPCG(5, 6))
	for range 30000 {
		in := slices.Clone(seeds[rng.IntN(len(seeds))])
		for range rng.IntN(5) {
			in[12+rng.IntN(len(in)-12)] = byte(rng.Uint32())
		}
		switch rng.IntN(4) {
		case 0:
			in = in[:min(len(in), 30+rng.IntN(len(in)))]
		case 1:
			other := seeds[rng.IntN(len(seeds))]
			in = append(in[:min(len(in), 14+rng.IntN(60))], other[min(len(other), 14+rng.IntN(60)):]...)
		}
		l.try(t, byte(rng.Uint32()), in)
	}
}
