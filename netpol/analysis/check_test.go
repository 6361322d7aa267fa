package analysis

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/manifests"
	"github.com/strake-io/strake/netpol/reference"
)

func judged(t *testing.T, s netpol.State, lines ...string) []Result {
	t.Helper()
	var list []Assertion
	for _, l := range lines {
		a, err := ParseAssertion(l)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, a)
	}
	e, err := reference.New(s)
	if err != nil {
		t.Fatal(err)
	}
	out, err := CheckAll(s, list, e)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCheck(t *testing.T) {
	s := load(t, "shop.yaml")
	six := load(t, "dual.yaml")
	for line, want := range map[string]string{ // "" holds; else a part of what is told
		"deny shop/db <- world":                                  "",
		"deny shop/db-0 <- world":                                "",
		"allow shop/web -> shop/db:5432/TCP":                     "",
		"allow shop/web -> shop/db:5432":                         "",
		"allow shop/web -> shop/db":                              "TCP 9187 is denied",
		"allow shop/db:5432/TCP <- shop/web":                     "",
		"allow shop/web -> shop/db:5432/UDP":                     "UDP 5432 is denied",
		"allow shop/web -> shop/db:5432,9000-9001/TCP":           "TCP 9000 is denied",
		"deny shop/web -> shop/db:1-5431/TCP":                    "",
		"deny shop/web -> shop/db:TCP":                           "TCP 5432 is allowed",
		"deny shop/web -> shop/db:UDP":                           "",
		"deny shop/web -> shop/db:5432":                          "shop/web-0 -> shop/db-0, TCP 5432 is allowed",
		"deny ns:shop <- * except ns:shop":                       "monitoring/prober -> shop/db-0, TCP 9187 is allowed",
		"deny ns:shop <- * except ns:shop, ns:mon*":              "is allowed",
		"deny ns:shop <- * except ns:shop, ns:mon*, world":       "nobody is meant by who begins: *",
		"deny ns:sh* -> [app=prober]":                            "is allowed",
		"deny [app in (db)] -> *":                                "",
		"deny ns[team=shop][app=db] -> *":                        "",
		"deny ns[team=shop] -> *":                                "is allowed",
		"deny ns[team!=shop][app=db] -> *":                       "nobody is meant by who begins",
		"deny pods:22/TCP <- pods":                               "",
		"deny * <- *":                                            "is allowed",
		"allow 192.0.2.0/24 -> shop/web:8080":                    "",
		"allow 10.1.2.3 -> shop/web:8080":                        "10.1.2.3/32 -> shop/web-0 (10.1.2.3), TCP 8080 is denied",
		"allow world except 10.0.0.0/8 -> shop/web:8080":         "",
		"allow 0.0.0.0/0 -> shop/web:8080":                       "is denied",
		"allow 0.0.0.0/0 except 10.0.0.0/8 -> shop/web:8080/TCP": "",
		"deny shop/none <- *":                                    "nobody is meant by who is asked: shop/none",
		"deny shop/db <- nodes":                                  "nobody is meant by who begins: nodes",
		"deny shop/db <- shop/db":                                "it is about no flow",
		"deny world -> world":                                    "it is about no flow",
	} {
		r := judged(t, s, line)[0]
		got := ""
		if !r.Holds {
			got = strings.Join(r.lines(), "\n")
		}
		if (want == "") != r.Holds || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
		if c := r.Counterexample; c != nil && c.Verdict.Allowed != c.Allowed {
			t.Errorf("%s: the evaluator does not agree: %+v", line, c)
		}
	}
	for line, holds := range map[string]bool{
		"deny one/a <- nodes": true, "deny one/b <- nodes": false, "allow 198.51.100.7 -> one/a:443/TCP, one/a:UDP": true, "allow fd00::/64 -> one/b": true, "deny one/a <- [::/0]": true,
		"allow [2001:db8:1::1] -> one/a:443": false, "deny one/b -> one/a:443": false, "deny two/c -> one/a": true, "deny one/a:80/TCP <- *": true, "deny fd00::3 -> one/a": false,
	} {
		if r := judged(t, six, line)[0]; r.Holds != holds {
			t.Errorf("%s: %+v", line, r)
		}
	}
}

func TestAssertionsThatAreNone(t *testing.T) {
	for line, want := range map[string]string{
		"":                                "begin with allow or deny",
		"permit a/b -> c/d":               "begin with allow or deny",
		"deny a/b":                        "one -> or <-",
		"deny a/b -> c/d -> e/f":          "one -> or <-",
		"deny a/b->c/d":                   "one -> or <-",
		"deny  -> a/b":                    "who is missing",
		"deny a/b -> a/b, ":               "who is missing",
		"deny web -> a/b":                 "neither NAMESPACE/NAME",
		"deny a/b/c -> a/b":               "neither NAMESPACE/NAME",
		"deny a/b -> a/b:pg/TCP":          "names of ports stand for other numbers",
		"deny a/b:80 -> a/b":              "ports are of those that are asked",
		"deny a/b -> a/b:0x":              "neither",
		"deny a/b -> a/b:70000":           "ports are 1 to 65535",
		"deny a/b -> a/b:9-8":             "ports are 1 to 65535",
		"deny a/b -> a/b:0/TCP":           "ports are 1 to 65535",
		"deny a/b -> a/b:80/ICMP":         "TCP, UDP and SCTP",
		"deny a/b -> a/b:http":            "TCP, UDP and SCTP",
		"deny [a=b -> a/b":                "a bracket is not closed",
		"deny [a==b==c] -> a/b":           "",
		"deny [a=b]x -> a/b":              "something comes after a bracket",
		"deny [a=b][c=d] -> a/b":          "too many selectors",
		"deny ns -> a/b":                  "neither",
		"deny ns: -> a/b":                 "neither",
		"deny a/[ -> a/b":                 "",
		"deny 10.0.0.0/40 -> a/b":         "",
		"deny * except a/b except c -> d": "except comes once",
	} {
		a, err := ParseAssertion(line)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v; want %q", line, a, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                                   "x: no assertions",
		"a: [":                               "x: yaml:",
		"assertions: {}":                     "x:1: not a list",
		"asserts: []":                        `x:1: unknown field "asserts"`,
		"- deny * <- *\n- nothing":           "x:2: ",
		"- {assert: deny * <- *, when: now}": `x:1: field "when"`,
		"- [a]":                              "x:1: neither a line nor a map",
		"3":                                  "x:1: not a list",
	} {
		if _, errs := ParseAssertions("x", []byte(text)); len(errs) == 0 || !strings.Contains(errs[0].Error(), want) {
			t.Errorf("%q: %v, want %q", text, errs, want)
		}
	}
	list, errs := ParseAssertions("x", []byte("assertions:\n- deny * <- *\n- assert: allow a/b -> c/d:80\n  name: n\n  because: b\n"))
	if len(errs) > 0 || len(list) != 2 || list[1].Name != "n" || list[1].Because != "b" || list[1].Line != 3 || list[0].Line != 2 || list[1].File != "x" {
		t.Errorf("%+v, %v", list, errs)
	}
}

// TestCheckMatchesTheReference: on random States, an assertion about two pods and a port holds if, and only if, the evaluator says so of every flow that it is
// about.
func TestCheckMatchesTheReference(t *testing.T) {
	held, failed := 0, 0
	for seed := range uint64(150) {
		d := dice{rand.New(rand.NewPCG(seed, 13))}
		s := d.state()
		e, err := reference.New(s)
		if err != nil {
			t.Fatal(err)
		}
		all := ends(New(s, Options{}))
		for _, from := range all {
			for _, to := range all {
				if from.end.Pod.Name == "" || to.end.Pod.Name == "" || from.end.Pod == to.end.Pod || from.end.Addr.Is6() || to.end.Addr.Is6() || from.host && from.node == to.node {
					continue
				}
				word := one(d, "allow", "deny")
				port := one[uint16](d, 79, 80, 81, 82, 90)
				line := fmt.Sprintf("%s %s -> %s:%d-%d/TCP", word, from.end.Pod, to.end.Pod, port, port+2)
				r := judged(t, s, line)[0]
				want := true
				for _, a := range all {
					for _, b := range all {
						if a.end.Pod != from.end.Pod || b.end.Pod != to.end.Pod || a.end.Addr.Is4() != b.end.Addr.Is4() {
							continue
						}
						for p := port; p <= port+2; p++ {
							v, err := e.Judge(netpol.Flow{From: a.end, To: b.end, Protocol: netpol.TCP, Port: p})
							if err != nil {
								t.Fatal(err)
							}
							want = want && v.Allowed == (word == "allow")
						}
					}
				}
				if r.Holds != want || r.Counterexample != nil && r.Counterexample.Verdict.Allowed != r.Counterexample.Allowed {
					t.Fatalf("seed %d: %s: %+v, want %t", seed, line, r, want)
				}
				if want {
					held++
				} else {
					failed++
				}
			}
		}
	}
	if held < 300 || failed < 300 {
		t.Errorf("%d held, %d failed", held, failed)
	}
}

// TestCheckOfMany: the same of assertions about many: namespaces, nodes, what is outside, and all of them.
func TestCheckOfMany(t *testing.T) {
	var held, failed, none int
	means := map[string]func(asked) bool{
		"ns:ns0": func(a asked) bool { return a.pod != nil && a.pod.Namespace == "ns0" },
		"ns:ns1": func(a asked) bool { return a.pod != nil && a.pod.Namespace == "ns1" },
		"pods":   func(a asked) bool { return a.pod != nil },
		"nodes":  func(a asked) bool { return a.pod == nil && a.host },
		"world":  func(a asked) bool { return a.pod == nil && !a.host },
		"*":      func(asked) bool { return true },
	}
	words := slices.Sorted(maps.Keys(means))
	for seed := range uint64(200) {
		d := dice{rand.New(rand.NewPCG(seed, 17))}
		s := d.state()
		e, err := reference.New(s)
		if err != nil {
			t.Fatal(err)
		}
		all := ends(New(s, Options{}))
		for range 12 {
			word, from, to, port := one(d, "allow", "deny"), one(d, words...), one(d, words...), one[uint16](d, 79, 80, 81, 90)
			line := fmt.Sprintf("%s %s -> %s:%d/TCP", word, from, to, port)
			asked, want := 0, true
			for _, a := range all {
				for _, b := range all {
					if a.dns || !means[from](a) || !means[to](b) || a.end.Addr.Is4() != b.end.Addr.Is4() || a.pod == b.pod || a.host && a.node != "" && a.node == b.node {
						continue
					}
					asked++
					v, err := e.Judge(netpol.Flow{From: a.end, To: b.end, Protocol: netpol.TCP, Port: port})
					if err != nil {
						t.Fatal(err)
					}
					want = want && v.Allowed == (word == "allow")
				}
			}
			r := judged(t, s, line)[0]
			switch {
			case asked == 0:
				none++
				if r.Holds || r.Problem == "" {
					t.Fatalf("seed %d: %s is about nobody, and holds: %+v", seed, line, r)
				}
				continue
			case want:
				held++
			default:
				failed++
			}
			if r.Holds != want || r.Counterexample != nil && r.Counterexample.Verdict.Allowed != r.Counterexample.Allowed {
				t.Fatalf("seed %d: %s: %+v, want %t", seed, line, r, want)
			}
		}
	}
	if held < 200 || failed < 200 || none < 20 {
		t.Errorf("%d held, %d failed, %d were about nobody", held, failed, none)
	}
}

// A node that gets to others' pods is seen, though its own pods come first; and by any of its addresses.
func TestCheckOfNodes(t *testing.T) {
	const cluster = `
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: ExternalIP, address: 198.51.100.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: x}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: x}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: x}, spec: {nodeName: n2}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: x}, spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: %s/32}}]}]}}
`
	for addr, want := range map[string]string{"192.0.2.1": "node n1 -> x/c (192.0.2.1)", "198.51.100.1": "node n1 -> x/c (198.51.100.1)", "192.0.2.2": "node n2 -> x/a (192.0.2.2)", "203.0.113.1": ""} {
		s, problems := manifests.Parse("x", []byte(fmt.Sprintf(cluster, addr)))
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		r := judged(t, s, "deny ns:x <- nodes")[0]
		if r.Holds != (want == "") || !r.Holds && !strings.HasPrefix(r.lines()[0], want) {
			t.Errorf("who has %s is admitted: %+v, want %q", addr, r, want)
		}
	}
}

func TestResultOutputs(t *testing.T) {
	list, errs := ParseAssertions("intents.yaml", []byte("- deny ns:shop <- * except ns:shop\n- {assert: \"allow shop/web -> shop/db:5432/TCP\", name: web asks its database}\n- {assert: deny shop/web -> world, because: nothing leaves}\n"))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	s := load(t, "shop.yaml")
	e, err := reference.New(s)
	if err != nil {
		t.Fatal(err)
	}
	results, err := CheckAll(s, list, e)
	if err != nil {
		t.Fatal(err)
	}
	var text, junit bytes.Buffer
	if err := WriteResults(&text, results); err != nil {
		t.Fatal(err)
	}
	if err := WriteResultsJUnit(&junit, results); err != nil {
		t.Fatal(err)
	}
	golden(t, "check.txt", text.Bytes())
	golden(t, "check.junit.xml", junit.Bytes())
}

func FuzzAssertions(f *testing.F) {
	f.Add([]byte("- deny ns:a <- * except ns[a=b][c in (d)], 10.0.0.0/8\n- {assert: 'allow a/b -> [fd00::/8]:1-2/TCP,3', name: x}"))
	f.Add([]byte("assertions:\n- allow [a] -> c/*:UDP"))
	s, _ := manifests.Parse("x", []byte("{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: a}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: a}}"))
	e, err := reference.New(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		list, _ := ParseAssertions("x", text)
		if len(list) > 20 {
			list = list[:20]
		}
		if _, err := CheckAll(s, list, e); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	})
}
