package bpf

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

// samplePolicies has a row of each kind.
func samplePolicies() PolicyChange {
	allow := PolicyVerdict{Allow: true, Policy: 7, Rule: 1, Tier: PolicyTierNetworkPolicy}
	deny := PolicyVerdict{Policy: 7, Rule: PolicyNoRule, Tier: PolicyTierNetworkPolicy}
	return PolicyChange{
		Names:   []PolicyName{{Policy: 7, UID: "0b5a", Kind: "NetworkPolicy", Namespace: "default", Name: "web"}},
		Ports:   []PolicyPort{{Ports: 3, Verdict: deny}, {Ports: 3, Protocol: 6, Verdict: allow}, {Ports: 3, Protocol: 6, Port: 80, Bits: 16, Verdict: deny}, {Ports: 3, Protocol: 17, Port: 1024, Bits: 6, Verdict: allow}},
		Answers: []PolicyAnswer{{RuleSet: 5, Ports: 3}, {RuleSet: 5, Identity: 9, Ports: 3}},
		Peers:   []PolicyPeer{{Prefix: netip.MustParsePrefix("10.244.1.7/32"), Identity: 9}, {Prefix: netip.MustParsePrefix("192.0.2.0/24"), Identity: 2}, {Prefix: netip.MustParsePrefix("::/0"), Identity: 4}, {Prefix: netip.MustParsePrefix("2001:db8::1/128"), Identity: 9}},
		Subjects: []PolicySubject{
			{Addr: netip.MustParseAddr(pod), Identity: 9, Ingress: 5, ShadowEgress: 5}, {Addr: netip.MustParseAddr(pod6), Identity: 9, Egress: 5, KeepFlows: true},
		},
	}
}

// What Apply wrote is what Dump and another agent find, and what is gone is gone.
func TestPolicyRowsAreKept(t *testing.T) {
	c := tablesConfig(t)
	d := open(t, c)
	sample := samplePolicies()
	must(t, d.Policies().Apply(sample))
	want := PolicyRows{Names: sample.Names, Ports: sample.Ports, Answers: sample.Answers, Subjects: sample.Subjects,
		Peers: []PolicyPeer{sample.Peers[0], sample.Peers[1], sample.Peers[2], sample.Peers[3]}}
	check := func(what string, read func() (PolicyRows, error), want PolicyRows) {
		t.Helper()
		got, err := read()
		must(t, err)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%+v, want\n%+v", what, got, want)
		}
	}
	check("written", d.Policies().Dump, want)
	check("read from the pins", func() (PolicyRows, error) { return ReadPolicies(c.PinDir) }, want)
	must(t, d.Close())
	c.MaxPolicyPeers, c.MaxPolicyRules = 100, 1000 // tables of another size take the rows
	d = open(t, c)
	check("after a restart", d.Policies().Dump, want)
	gone := PolicyChange{GoneSubjects: []netip.Addr{netip.MustParseAddr(pod)}, GonePeers: []netip.Prefix{sample.Peers[0].Prefix, sample.Peers[1].Prefix}, GoneAnswers: sample.Answers[:1], GonePorts: []uint32{3}, GoneNames: []uint32{7}}
	must(t, d.Policies().Apply(gone))
	must(t, d.Policies().Apply(gone)) // what is gone may go again
	check("gone", d.Policies().Dump, PolicyRows{Subjects: want.Subjects[1:], Peers: want.Peers[2:], Answers: want.Answers[1:]})
	must(t, d.Policies().Apply(PolicyChange{GonePeers: gone.GonePeers}))
	if n, err := d.Policies().revision(); err != nil || n != 7 { // a change, and three by which subjects or peers went; the programs look at none of it
		t.Errorf("revision %d, %v", n, err)
	}
}

// A full table is an error that says what makes room, and so is what is no row. Neither changes the revision, nor what is live.
func TestPolicyRowsThatDoNotFit(t *testing.T) {
	c := tablesConfig(t)
	c.MaxPolicyPeers, c.MaxPolicyRules = 20, 30
	p := open(t, c).Policies()
	live := samplePolicies()
	must(t, p.Apply(live))
	many := samplePolicies()
	many.Subjects[0].Ingress = 6
	var tooMany PolicyChange
	for i := range 40 {
		tooMany.Peers = append(tooMany.Peers, PolicyPeer{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 32), Identity: 1})
	}
	tooMany.Subjects = many.Subjects
	if err := p.Apply(tooMany); err == nil || !strings.Contains(err.Error(), FlagMaxPolicyPeers) {
		t.Errorf("too many peers: %v", err)
	}
	tooMany.Peers = nil
	for i := range 40 {
		tooMany.Answers = append(tooMany.Answers, PolicyAnswer{RuleSet: 9, Identity: uint32(i), Ports: 1})
	}
	if err := p.Apply(tooMany); err == nil || !strings.Contains(err.Error(), FlagMaxPolicyRules) {
		t.Errorf("too many answers: %v", err)
	}
	tooMany.Answers = nil
	for i := range 40 {
		tooMany.Ports = append(tooMany.Ports, PolicyPort{Ports: 9, Protocol: 6, Port: uint16(i), Bits: 16})
	}
	if err := p.Apply(tooMany); err == nil || !strings.Contains(err.Error(), FlagMaxPolicyRules) {
		t.Errorf("too many ports: %v", err)
	}
	for what, c := range map[string]PolicyChange{
		"ports of no protocol":    {Ports: []PolicyPort{{Ports: 1, Port: 80, Bits: 16}}},
		"ports behind the bits":   {Ports: []PolicyPort{{Ports: 1, Protocol: 6, Port: 81, Bits: 15}}},
		"list 0":                  {Ports: []PolicyPort{{Protocol: 6}}},
		"rule set 0":              {Answers: []PolicyAnswer{{Identity: 1, Ports: 1}}},
		"a mapped address":        {Subjects: []PolicySubject{{Addr: netip.MustParseAddr("::ffff:10.0.0.1")}}},
		"a range of no address":   {Peers: []PolicyPeer{{}}},
		"a name that is too long": {Names: []PolicyName{{Policy: 1, Name: fmt.Sprintf("%300d", 1)}}},
	} {
		if err := p.Apply(c); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	rows, err := p.Dump()
	must(t, err)
	if !reflect.DeepEqual(rows.Subjects, live.Subjects) {
		t.Errorf("what is live changed: %+v", rows.Subjects)
	}
	if n, err := p.revision(); err != nil || n != 1 {
		t.Errorf("revision %d, %v", n, err)
	}
	// What of the list was written goes with it.
	must(t, p.Apply(PolicyChange{GonePorts: []uint32{9}}))
	if rows, err = p.Dump(); err != nil || !reflect.DeepEqual(rows.Ports, live.Ports) {
		t.Errorf("ports that are left: %+v, %v", rows.Ports, err)
	}
}
