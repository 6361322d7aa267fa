package flows

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Shadow is what a policy in shadow would do to flows of a class, and policies that are enforced don't.
type Shadow struct {
	Policy    string `json:"policy"` // as Filter.Policy
	Direction string `json:"direction"`
	Rule      int    `json:"rule"`  // netpol.NoRule: isolation
	Would     string `json:"would"` // "drop" or "allow"
	From      string `json:"from"`
	To        string `json:"to"`
	Protocol  string `json:"protocol"`
	Port      uint16 `json:"port,omitempty"`
	Count     uint64 `json:"count"` // flows that would be dropped, or packets that would pass
}

// Shadows lists what policies in shadow would do, by policy, that with most flows first.
func Shadows(sums []*Sum) []Shadow {
	at := map[string]*Shadow{}
	for _, s := range sums {
		drops, allows := s.WouldDrop(), s.WouldAllow()
		n := s.Flows + s.Again
		if allows {
			n = s.Packets
		}
		for _, side := range []struct {
			direction string
			d         *Decision
		}{{"egress", s.ShadowEgress}, {"ingress", s.ShadowIngress}} {
			if side.d == nil || side.d.Policy == nil || !(drops && !side.d.Allowed || allows && side.d.Allowed) {
				continue
			}
			one := Shadow{Policy: side.d.Policy.String(), Direction: side.direction, Rule: side.d.Rule, Would: "drop", From: s.From.Name(), To: s.To.Name(), Protocol: s.Protocol, Port: s.Port}
			if allows {
				one.Would = "allow"
			}
			key := fmt.Sprint(one)
			if at[key] == nil {
				at[key] = &one
			}
			at[key].Count += n
		}
	}
	out := []Shadow{}
	for _, s := range slices.SortedFunc(maps.Values(at), func(a, b *Shadow) int {
		return cmp.Or(strings.Compare(a.Policy, b.Policy), cmp.Compare(b.Count, a.Count), strings.Compare(a.Direction+a.From+a.To, b.Direction+b.From+b.To), cmp.Compare(a.Port, b.Port))
	}) {
		out = append(out, *s)
	}
	return out
}
