package compiler

import (
	"encoding/binary"
	"slices"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// span is a range of ports, both ends included.
type span struct{ first, last uint16 }

// ported are the protocols that have ports, in the order in which a canvas keeps them.
var ported = [...]uint8{netpol.TCP, netpol.UDP, netpol.SCTP}

// canvas is what tiers and rules say of every protocol and port, one after the other: what was decided stays.
type canvas struct {
	protocols [len(ported)][]piece
	other     piece // of protocols without ports
}

// piece is what is said of the ports up to last, from where the piece before ends.
type piece struct {
	last    uint16
	state   uint8
	verdict bpf.PolicyVerdict
}

const (
	open   = iota // nobody decided
	passed        // by a rule of this tier to the next one
	decided
)

func newCanvas() *canvas {
	c := &canvas{other: piece{last: 65535}}
	for i := range c.protocols {
		c.protocols[i] = []piece{{last: 65535}}
	}
	return c
}

// paintAll decides what is open of all protocols.
func (c *canvas) paintAll(state uint8, v bpf.PolicyVerdict) {
	for i := range c.protocols {
		c.paint(i, []span{{0, 65535}}, state, v)
	}
	if c.other.state == open {
		c.other = piece{65535, state, v}
	}
}

// paint decides what is open of the spans, which are sorted and apart, of a protocol.
func (c *canvas) paint(protocol int, spans []span, state uint8, v bpf.PolicyVerdict) {
	old := c.protocols[protocol]
	if !anyOpen(old, spans) {
		return
	}
	pieces := make([]piece, 0, len(old)+2*len(spans))
	add := func(p piece) {
		if n := len(pieces); n > 0 && pieces[n-1].state == p.state && pieces[n-1].verdict == p.verdict {
			pieces[n-1].last = p.last
			return
		}
		pieces = append(pieces, p)
	}
	first := uint32(0)
	for _, p := range old {
		if p.state != open {
			add(p)
			first = uint32(p.last) + 1
			continue
		}
		for len(spans) > 0 && uint32(spans[0].last) < first {
			spans = spans[1:]
		}
		for _, s := range spans {
			if s.first > p.last {
				break
			}
			if uint32(s.first) > first {
				add(piece{last: s.first - 1})
			}
			first = uint32(min(s.last, p.last)) + 1
			add(piece{uint16(first - 1), state, v})
		}
		if first <= uint32(p.last) {
			add(p)
			first = uint32(p.last) + 1
		}
	}
	c.protocols[protocol] = pieces
}

// anyOpen tells whether anything of the spans is open.
func anyOpen(pieces []piece, spans []span) bool {
	for _, s := range spans {
		i, _ := slices.BinarySearchFunc(pieces, s.first, func(p piece, first uint16) int { return int(p.last) - int(first) })
		for ; i < len(pieces); i++ {
			if pieces[i].state == open {
				return true
			}
			if pieces[i].last >= s.last {
				break
			}
		}
	}
	return false
}

// nextTier opens what was passed.
func (c *canvas) nextTier() {
	for _, pieces := range c.protocols {
		for i := range pieces {
			if pieces[i].state == passed {
				pieces[i] = piece{last: pieces[i].last}
			}
		}
	}
	if c.other.state == passed {
		c.other = piece{last: 65535}
	}
}

// both is what two canvases allow both; of what only one allows the other tells why not.
func both(a, b *canvas) *canvas {
	pick := func(x, y bpf.PolicyVerdict) bpf.PolicyVerdict {
		if x.Allow {
			return y
		}
		return x
	}
	c := &canvas{other: piece{65535, decided, pick(a.other.verdict, b.other.verdict)}}
	for i := range c.protocols {
		x, y := a.protocols[i], b.protocols[i]
		for len(x) > 0 {
			p := piece{min(x[0].last, y[0].last), decided, pick(x[0].verdict, y[0].verdict)}
			if n := len(c.protocols[i]); n > 0 && c.protocols[i][n-1].verdict == p.verdict {
				c.protocols[i][n-1].last = p.last
			} else {
				c.protocols[i] = append(c.protocols[i], p)
			}
			if x[0].last == p.last {
				x = x[1:]
			}
			if y[0].last == p.last {
				y = y[1:]
			}
		}
	}
	return c
}

// join sorts spans and joins those that touch.
func join(spans []span) []span {
	if len(spans) < 2 {
		return spans
	}
	slices.SortFunc(spans, func(a, b span) int { return int(a.first) - int(b.first) })
	joined := spans[:1]
	for _, s := range spans[1:] {
		if l := &joined[len(joined)-1]; uint32(s.first) <= uint32(l.last)+1 {
			l.last = max(l.last, s.last)
		} else {
			joined = append(joined, s)
		}
	}
	return joined
}

// rows are the rows of a list that say what the canvas does: as few as there can be. Their list has no number yet.
func (c *canvas) rows() []bpf.PolicyPort {
	rows := []bpf.PolicyPort{{Verdict: c.other.verdict}}
	for i, pieces := range c.protocols {
		root := prefixTree(pieces, 0, 0)
		root.emit(ported[i], 0, 0, c.other.verdict, &rows)
	}
	return rows
}

// prefix is a node of the tree of prefixes of ports: with the verdicts that cost the fewest rows below, as "Constructing Optimal IP
// Routing Tables" (Draves, King, Venkatachary, Zill, 1999) has it.
type prefix struct {
	best []bpf.PolicyVerdict
	half [2]*prefix
}

// prefixTree makes the tree of the 1<<(16-bits) ports from port on; pieces are those that reach into them, from before.
func prefixTree(pieces []piece, port uint32, bits uint8) *prefix {
	for uint32(pieces[0].last) < port {
		pieces = pieces[1:]
	}
	size := uint32(1) << (16 - bits)
	if uint32(pieces[0].last) >= port+size-1 {
		return &prefix{best: []bpf.PolicyVerdict{pieces[0].verdict}}
	}
	p := &prefix{half: [2]*prefix{
		prefixTree(pieces, port, bits+1),
		prefixTree(pieces, port+size/2, bits+1),
	}}
	for _, v := range p.half[0].best {
		if slices.Contains(p.half[1].best, v) {
			p.best = append(p.best, v)
		}
	}
	if p.best == nil {
		p.best = append(slices.Clone(p.half[0].best), p.half[1].best...)
	}
	return p
}

func (p *prefix) emit(protocol uint8, port uint32, bits uint8, above bpf.PolicyVerdict, rows *[]bpf.PolicyPort) {
	if !slices.Contains(p.best, above) {
		above = p.best[0]
		*rows = append(*rows, bpf.PolicyPort{Protocol: protocol, Port: uint16(port), Bits: bits, Verdict: above})
	}
	if p.half[0] != nil {
		p.half[0].emit(protocol, port, bits+1, above, rows)
		p.half[1].emit(protocol, port+1<<(15-bits), bits+1, above, rows)
	}
}

// portsKey is what two lists have in common that say the same.
func portsKey(rows []bpf.PolicyPort) string {
	b := make([]byte, 0, len(rows)*11)
	for _, r := range rows {
		b = append(b, r.Protocol, r.Bits)
		b = binary.BigEndian.AppendUint16(b, r.Port)
		b = binary.BigEndian.AppendUint32(b, r.Verdict.Policy)
		b = binary.BigEndian.AppendUint16(b, r.Verdict.Rule)
		said := byte(r.Verdict.Tier) << 1
		if r.Verdict.Allow {
			said |= 1
		}
		b = append(b, said)
	}
	return string(b)
}
