package corefile

import (
	"fmt"
	"strings"
	"testing"
)

func show(blocks []Block) string {
	var b strings.Builder
	var lines func(list []Directive)
	lines = func(list []Directive) {
		for _, d := range list {
			fmt.Fprintf(&b, "%d:%s%q", d.Line, d.Name, d.Args)
			if len(d.Body) > 0 {
				b.WriteString("{")
				lines(d.Body)
				b.WriteString("}")
			}
			b.WriteString(" ")
		}
	}
	for _, block := range blocks {
		fmt.Fprintf(&b, "%d:%q{", block.Line, block.Keys)
		lines(block.Directives)
		b.WriteString("}")
	}
	return b.String()
}

func TestParse(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"nothing":                  {"", ""},
		"a comment":                {"# a { b\n", ""},
		"usual":                    {".:53 {\n  errors # all\n  cache 30\n  kubernetes c.local {\n    ttl 30\n  }\n}\n", `1:[".:53"]{2:errors[] 3:cache["30"] 4:kubernetes["c.local"]{5:ttl["30"] } }`},
		"without braces":           {"example.org\nerrors\nforward . 192.0.2.1\n", `1:["example.org"]{2:errors[] 3:forward["." "192.0.2.1"] }`},
		"several zones":            {"a, b,\nc d {\n}\n", `1:["a" "b" "c" "d"]{}`},
		"two blocks":               {"a {\nx\n}\nb {\ny\n}", `1:["a"]{2:x[] }4:["b"]{5:y[] }`},
		"on one line":              {"a { x 1 }", `1:["a"]{1:x["1"] }`},
		"quotes":                   {"a {\n x \"b c\" \"d \\\" e\" f#g \"{\"\n}", `1:["a"]{2:x["b c" "d \" e" "f#g" "{"] }`},
		"a quote of two lines":     {"a {\n x \"b\nc\"\n y\n}", `1:["a"]{2:x["b\nc"] 4:y[] }`},
		"a snippet":                {"(s) {\n x\n y\n}\na {\n import s\n z\n}", `5:["a"]{2:x[] 3:y[] 7:z[] }`},
		"an import that is a file": {"a {\n import custom/*.override\n}", `1:["a"]{2:import["custom/*.override"] }`},
		"windows":                  {"\ufeffa {\r\n x\r\n}\r\n", `1:["a"]{2:x[] }`},
		"an address as directive":  {"a {\n hosts {\n 192.0.2.1 b c\n fallthrough\n }\n}", `1:["a"]{2:hosts[]{3:192.0.2.1["b" "c"] 4:fallthrough[] } }`},
	} {
		got, err := Parse(c.in)
		if err != nil || show(got) != c.want {
			t.Errorf("%s: %s, %v\nwant %s", name, show(got), err, c.want)
		}
	}
	for in, want := range map[string]string{
		"a {":                               "line 1: { without }",
		"a {\n x {\n}":                      "line 3: { without }",
		"}":                                 "line 1: } without {",
		"a {\n}\n}":                         "line 3: } without {",
		"{\n}":                              "line 1: a block for no zone",
		"a":                                 "line 1: a has no block",
		"a {\n}\nb\nc {\n}":                 "line 3: b is followed by no {",
		"a {\n x \"y\n}":                    "line 2: a quote is not closed",
		"a {\n {\n}\n}":                     "line 2: { without a directive",
		"(s) {\n}\n(s) {\n}\na {\n}":        "line 3: snippet (s) is there twice",
		"a {" + strings.Repeat("\nx {", 20): "line 10: braces are too deep",
	} {
		if got, err := Parse(in); err == nil || err.Error() != want {
			t.Errorf("%q: %s, %v; want %s", in, show(got), err, want)
		}
	}
	// Snippets in snippets in snippets.
	bomb := "(a0) {\n x\n x\n}\n"
	for i := range 20 {
		bomb += fmt.Sprintf("(a%d) {\n%s}\n", i+1, strings.Repeat(fmt.Sprintf(" import a%d\n", i), 10))
	}
	if _, err := Parse(bomb); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a bomb: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(".:53 {\n errors\n hosts {\n 192.0.2.1 a\n }\n}\n")
	f.Add("(s) {\n x\n}\na, b {\n import s \"q \\\" r\" { y }\n}")
	f.Add("a\nb c # d\n")
	f.Fuzz(func(t *testing.T, in string) {
		blocks, err := Parse(in)
		if err != nil {
			return
		}
		var checked func(list []Directive)
		checked = func(list []Directive) {
			for _, d := range list {
				if d.Line < 1 {
					t.Errorf("%q: %v has no line", in, d)
				}
				checked(d.Body)
			}
		}
		for _, b := range blocks {
			checked(b.Directives)
			if len(b.Keys) == 0 {
				t.Errorf("%q has a block without a key", in)
			}
		}
	})
}
