package analysis

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/labels"
)

// Assertion is an intent about flows, which the policies have to serve.
type Assertion struct {
	Name    string `json:"name,omitempty"`
	Text    string `json:"assert"`
	Because string `json:"because,omitempty"`
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`

	allow    bool
	from, to []target
	notFrom  []target
	notTo    []target
}

// target is a set of ends; of those that are asked, with ports.
type target struct {
	text    string
	pods    bool // all of them
	nodes   bool // all of them
	world   bool // all addresses that are neither
	block   netip.Prefix
	pattern string          // namespace/name of workload or pod
	space   string          // pattern of a namespace's name; empty: any
	spaces  labels.Selector // of namespaces; nil: any
	labels  labels.Selector // of pods; nil: any
	byPod   bool            // pattern, space, spaces and labels count
	ports   *PortSet        // nil: all there is
}

var (
	portSuffix = regexp.MustCompile(`^(.*):(\d+(?:-\d+)?(?:/[A-Za-z]+)?|[A-Za-z]+)$`)
	morePorts  = regexp.MustCompile(`^\d+(-\d+)?(/[A-Za-z]+)?$`)
	arrow      = regexp.MustCompile(`\s(->|<-)\s`)
	spaceName  = regexp.MustCompile(`^[a-z0-9*?-]+$`)
	podName    = regexp.MustCompile(`^[a-z0-9*?-]+/[a-z0-9.*?-]+$`)
	exception  = regexp.MustCompile(`\sexcept\s`)
)

// maxAssertions bounds what a file may hold.
const maxAssertions = 10_000

// ParseAssertions reads a file of assertions: a list, by itself or as "assertions"; each is a line as ParseAssertion takes it, or a map with
// assert, name and because. All that is wrong is told, with its line.
func ParseAssertions(file string, text []byte) (out []Assertion, errs []error) {
	defer func() { // the YAML parser's own panics are errors
		if r := recover(); r != nil {
			out, errs = nil, []error{fmt.Errorf("%s: its parser gave up: %v", file, r)}
		}
	}()
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, []error{fmt.Errorf("%s: %w", file, err)}
	}
	if doc.Kind == 0 {
		return nil, []error{fmt.Errorf("%s: no assertions", file)}
	}
	bad := func(n *yaml.Node, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s:%d: %w", file, n.Line, fmt.Errorf(format, args...)))
	}
	list := doc.Content[0]
	if list.Kind == yaml.MappingNode {
		var found *yaml.Node
		for i := 0; i+1 < len(list.Content); i += 2 {
			if k := list.Content[i]; k.Value == "assertions" {
				found = list.Content[i+1]
			} else {
				bad(k, "unknown field %q", k.Value)
			}
		}
		if found == nil {
			bad(list, "no assertions")
			return nil, errs
		}
		list = found
	}
	if list.Kind != yaml.SequenceNode || len(list.Content) > maxAssertions {
		bad(list, "not a list of at most %d assertions", maxAssertions)
		return nil, errs
	}
	for _, n := range list.Content {
		var a Assertion
		switch n.Kind {
		case yaml.ScalarNode:
			a.Text = n.Value
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				k, v := n.Content[i], n.Content[i+1]
				to, ok := map[string]*string{"assert": &a.Text, "name": &a.Name, "because": &a.Because}[k.Value]
				if !ok || v.Kind != yaml.ScalarNode {
					bad(k, "field %q: assert, name and because are known, and are text", k.Value)
					continue
				}
				*to = v.Value
			}
		default:
			bad(n, "neither a line nor a map")
			continue
		}
		one, err := ParseAssertion(a.Text)
		if err != nil {
			bad(n, "%w", err)
			continue
		}
		one.Name, one.Because, one.File, one.Line = a.Name, a.Because, file, n.Line
		out = append(out, one)
	}
	return out, errs
}

// ParseAssertion reads one: allow or deny, who, -> or <-, whom:
//
//	deny  ns:cde <- * except ns:cde
//	allow default/web -> default/db:5432/TCP
//	deny  [app=web] -> world
//	allow ns[team=shop][app=web] -> 192.0.2.0/24:443/TCP, ns:dns:53/UDP
//
// Each side is a list with commas. Ends are NAMESPACE/NAME of a workload or a pod and ns:NAME, with * and ?; [labels] of pods, ns[labels] of
// namespaces, and both; a block or an address, of what is neither pod nor node; pods, nodes, world (what is neither), * (everybody). Those that are asked may have ports:
// :443/TCP, :8000-8100/UDP, :TCP. A port without a protocol is TCP's where it is to be allowed, and every protocol's where it is to be
// denied. Without ports, everything is to be allowed, or nothing.
func ParseAssertion(text string) (Assertion, error) {
	a := Assertion{Text: strings.TrimSpace(text)}
	word, rest, _ := strings.Cut(a.Text, " ")
	switch word {
	case "allow":
		a.allow = true
	case "deny":
	default:
		return a, fmt.Errorf("%q: begin with allow or deny", a.Text)
	}
	at := arrow.FindAllStringSubmatchIndex(" "+rest+" ", -1)
	if len(at) != 1 {
		return a, fmt.Errorf("%q: one -> or <- with spaces around it", a.Text)
	}
	padded := " " + rest + " "
	left, right := padded[:at[0][0]], padded[at[0][1]:]
	if padded[at[0][2]:at[0][3]] == "<-" {
		left, right = right, left
	}
	var err error
	if a.from, a.notFrom, err = a.side(left, false); err != nil {
		return a, err
	}
	a.to, a.notTo, err = a.side(right, true)
	return a, err
}

func (a *Assertion) side(text string, asked bool) (in, out []target, err error) {
	parts := exception.Split(text, -1)
	if len(parts) > 2 {
		return nil, nil, fmt.Errorf("%q: except comes once on each side, with a list", strings.TrimSpace(text))
	}
	if in, err = a.targets(parts[0], asked); err == nil && len(parts) == 2 {
		out, err = a.targets(parts[1], false)
	}
	return in, out, err
}

func (a *Assertion) targets(text string, asked bool) ([]target, error) {
	var out []target
	for _, word := range splitList(text) {
		if n := len(out); asked && n > 0 && out[n-1].ports != nil && morePorts.MatchString(word) {
			more, err := a.ports(word)
			if err != nil {
				return nil, err
			}
			*out[n-1].ports = out[n-1].ports.or(more)
			out[n-1].text += "," + word
			continue
		}
		t, err := a.target(word, asked)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// splitList splits at commas that are not within brackets.
func splitList(text string) []string {
	var out []string
	depth, from := 0, 0
	for i, c := range text {
		switch c {
		case '[', '(':
			depth++
		case ']', ')':
			depth--
		case ',':
			if depth == 0 {
				out = append(out, strings.TrimSpace(text[from:i]))
				from = i + 1
			}
		}
	}
	return append(out, strings.TrimSpace(text[from:]))
}

func (a *Assertion) ports(text string) (PortSet, error) {
	var s PortSet
	number, protocol, named := strings.Cut(text, "/")
	all := number[0] < '0' || number[0] > '9'
	if all {
		protocol, named = number, true
	}
	i := slices.Index(protocolNames[:], strings.ToUpper(protocol))
	if named && i < 0 {
		return s, fmt.Errorf("%q: TCP, UDP and SCTP are the protocols with ports", text)
	}
	p := []Ports{everyPort}
	if !all {
		low, high, isRange := strings.Cut(number, "-")
		from, err := strconv.ParseUint(low, 10, 16)
		to := from
		if err == nil && isRange {
			to, err = strconv.ParseUint(high, 10, 16)
		}
		if err != nil || from == 0 || from > to {
			return s, fmt.Errorf("%q: ports are 1 to 65535", text)
		}
		p = []Ports{{uint16(from), uint16(to)}}
	}
	switch {
	case named:
		s.Of[i] = p
	case a.allow:
		s.Of[0] = p
	default:
		s.Of = [3][]Ports{p, p, p}
	}
	return s, nil
}

func (a *Assertion) target(word string, asked bool) (target, error) {
	t := target{text: word}
	if p, err := parseBlock(word); err == nil { // before ports: an address of IPv6 is full of colons
		t.block = p
		return t, nil
	}
	if m := portSuffix.FindStringSubmatch(word); m != nil && m[1] != "ns" {
		s, err := a.ports(m[2])
		switch {
		case err != nil:
			return t, fmt.Errorf("%q: %w", word, err)
		case !asked:
			return t, fmt.Errorf("%q: ports are of those that are asked", word)
		}
		word, t.ports = m[1], &s
	}
	bare := word
	if strings.HasPrefix(bare, "[") && strings.HasSuffix(bare, "]") {
		bare = bare[1 : len(bare)-1]
	}
	if p, err := parseBlock(bare); err == nil {
		t.block = p
		return t, nil
	}
	switch word {
	case "":
		return t, errors.New("who is missing")
	case "*":
		t.pods, t.nodes, t.world = true, true, true
		return t, nil
	case "pods":
		t.pods = true
		return t, nil
	case "nodes":
		t.nodes = true
		return t, nil
	case "world":
		t.world = true
		return t, nil
	}
	return t, t.podPattern(word)
}

func (t *target) podPattern(word string) error {
	t.byPod = true
	name, selectors, err := brackets(word)
	if err != nil {
		return err
	}
	namespaces := name == "ns"
	switch space, ok := strings.CutPrefix(name, "ns:"); {
	case ok && spaceName.MatchString(space):
		t.space = space
	case namespaces && len(selectors) > 0, name == "" && len(selectors) > 0:
	case podName.MatchString(name):
		t.pattern = name
	case strings.Contains(word, ":"):
		return fmt.Errorf("%q: what follows the colon is neither a port, a range nor a protocol (443/TCP, 8000-8100, UDP); names of ports stand for other numbers at other pods", word)
	default:
		return fmt.Errorf("%q: neither NAMESPACE/NAME, ns:NAME, [labels], ns[labels], a block, pods, nodes, world nor *", word)
	}
	limit := 1
	if namespaces {
		limit = 2
	}
	if len(selectors) > limit {
		return fmt.Errorf("%q: too many selectors", word)
	}
	for i, s := range selectors {
		parsed, err := labels.Parse(s)
		if err != nil {
			return fmt.Errorf("%q: %w", word, err)
		}
		if namespaces && i == 0 {
			t.spaces = parsed
		} else {
			t.labels = parsed
		}
	}
	return nil
}

// brackets takes what is in brackets off the end of a word.
func brackets(word string) (name string, in []string, err error) {
	name, rest, ok := strings.Cut(word, "[")
	for ok {
		one, after, closed := strings.Cut(rest, "]")
		if !closed {
			return "", nil, fmt.Errorf("%q: a bracket is not closed", word)
		}
		in = append(in, one)
		if after == "" {
			return name, in, nil
		}
		if rest, ok = strings.CutPrefix(after, "["); !ok {
			return "", nil, fmt.Errorf("%q: something comes after a bracket", word)
		}
	}
	return name, in, nil
}

func parseBlock(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err == nil && p.Addr().Is4In6() {
		err = errors.New("IPv4 in IPv6")
	}
	return p.Masked(), err
}
