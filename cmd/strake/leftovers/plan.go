package leftovers

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// chain is one of a table of iptables, whichever half of the kernel has it.
type chain struct {
	name string
	base bool // packets come to it by themselves
	ours bool // kube-proxy made it
}

// rule is one that jumps.
type rule struct {
	chain  string
	target string
	text   string // by which it is deleted
}

// plan is what is to become of one table.
type plan struct {
	rules  []rule   // in chains of others, that jump to what goes
	chains []string // that go
	kept   []string // kube-proxy's, but a rule of somebody else's own chain jumps there
}

// planOf is pure. Rules in base chains that jump to kube-proxy's chains are kube-proxy's. A chain of somebody's own that jumps there, such as the
// portmap plugin's with KUBE-MARK-MASQ as its mark, keeps what it jumps to, and what that jumps to; and for a mark what heeds it.
func planOf(chains []chain, rules []rule) plan {
	known := map[string]chain{}
	for _, c := range chains {
		known[c.name] = c
	}
	keep := map[string]bool{}
	var hold func(string)
	hold = func(name string) {
		if keep[name] || !known[name].ours {
			return
		}
		keep[name] = true
		for _, r := range rules {
			if r.chain == name {
				hold(r.target)
			}
		}
	}
	for _, r := range rules {
		if from := known[r.chain]; !from.base && !from.ours {
			hold(r.target)
		}
	}
	const mark, masquerade = "KUBE-MARK-MASQ", "KUBE-POSTROUTING"
	if keep[mark] {
		hold(masquerade)
	}
	var p plan
	for _, c := range chains {
		switch {
		case keep[c.name]:
			p.kept = append(p.kept, c.name)
		case c.ours:
			p.chains = append(p.chains, c.name)
		}
	}
	for _, r := range rules {
		if known[r.chain].base && known[r.target].ours && (!keep[r.target] || r.target != masquerade) {
			p.rules = append(p.rules, r)
		}
	}
	return p
}

// legacyPlan reads what iptables-save says of one table. The script that it gives is for iptables-restore --noflush, which does all or nothing.
func legacyPlan(saved string) (script string, kept []string, err error) {
	var table string
	var chains []chain
	var rules []rule
	for line := range strings.Lines(saved) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "*"):
			if table != "" {
				return "", nil, errors.New("iptables-save tells of more than one table")
			}
			table = line[1:]
		case strings.HasPrefix(line, ":"):
			f := strings.Fields(line[1:])
			if len(f) < 2 {
				return "", nil, fmt.Errorf("iptables-save: chain %q", line)
			}
			chains = append(chains, chain{name: f[0], base: f[1] != "-", ours: f[1] == "-" && OfKubeProxy(table, f[0])})
		case strings.HasPrefix(line, "-A "):
			words := words(line)
			if len(words) < 2 {
				return "", nil, fmt.Errorf("iptables-save: rule %q", line)
			}
			if i := slices.IndexFunc(words, func(w string) bool { return w == "-j" || w == "-g" }); i >= 0 && i+1 < len(words) {
				rules = append(rules, rule{chain: words[1], target: words[i+1], text: "-D " + line[len("-A "):]})
			}
		}
	}
	p := planOf(chains, rules)
	if len(p.rules)+len(p.chains) == 0 {
		return "", p.kept, nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", table)
	for _, c := range p.chains { // named so, a chain is emptied
		fmt.Fprintf(&b, ":%s - [0:0]\n", c)
	}
	for _, r := range p.rules {
		fmt.Fprintln(&b, r.text)
	}
	for _, c := range p.chains {
		fmt.Fprintf(&b, "-X %s\n", c)
	}
	b.WriteString("COMMIT\n")
	return b.String(), p.kept, nil
}

// words splits a rule as a shell would, as far as iptables-save needs it: double quotes, and a backslash before what would end them.
func words(line string) []string {
	var out []string
	var word strings.Builder
	quoted, begun := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && quoted && i+1 < len(line):
			i++
			word.WriteByte(line[i])
		case c == '"':
			quoted, begun = !quoted, true
		case c == ' ' && !quoted:
			if begun {
				out = append(out, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteByte(c)
			begun = true
		}
	}
	if begun {
		out = append(out, word.String())
	}
	return out
}

// nftRuleset is what `nft -j list ruleset` says, as far as it matters here.
type nftRuleset struct {
	Nftables []struct {
		Table *struct{ Family, Name string }
		Chain *struct {
			Family, Table, Name string
			Hook                string // of base chains
		}
		Rule *struct {
			Family, Table, Chain string
			Handle               int
			Expr                 []map[string]json.RawMessage
		}
	}
}

// iptablesTables are the names under which iptables-nft keeps its tables.
var iptablesTables = []string{"nat", "filter", "mangle", "raw", "security"}

// nftPlan is the same for nftables: tables of iptables-nft, and kube-proxy's own. The script is for `nft -f -`, which does all or nothing.
func nftPlan(listed []byte) (script string, kept []string, err error) {
	var set nftRuleset
	if err := json.Unmarshal(listed, &set); err != nil {
		return "", nil, fmt.Errorf("nft -j list ruleset: %w", err)
	}
	type table struct{ family, name string }
	chains, rules := map[table][]chain{}, map[table][]rule{}
	var order []table
	var b strings.Builder
	for _, v := range set.Nftables {
		switch {
		case v.Table != nil && v.Table.Name == nftTable && (v.Table.Family == "ip" || v.Table.Family == "ip6"):
			fmt.Fprintf(&b, "delete table %s %s\n", v.Table.Family, v.Table.Name)
		case v.Table != nil && slices.Contains(iptablesTables, v.Table.Name) && (v.Table.Family == "ip" || v.Table.Family == "ip6"):
			order = append(order, table{v.Table.Family, v.Table.Name})
		case v.Chain != nil:
			t := table{v.Chain.Family, v.Chain.Table}
			chains[t] = append(chains[t], chain{v.Chain.Name, v.Chain.Hook != "", v.Chain.Hook == "" && OfKubeProxy(v.Chain.Table, v.Chain.Name)})
		case v.Rule != nil:
			t := table{v.Rule.Family, v.Rule.Table}
			for _, e := range v.Rule.Expr {
				for _, verb := range []string{"jump", "goto"} {
					var to struct{ Target string }
					if raw, ok := e[verb]; ok && json.Unmarshal(raw, &to) == nil && to.Target != "" {
						rules[t] = append(rules[t], rule{v.Rule.Chain, to.Target, fmt.Sprintf("delete rule %s %s %s handle %d", t.family, t.name, v.Rule.Chain, v.Rule.Handle)})
					}
				}
			}
		}
	}
	for _, t := range order {
		p := planOf(chains[t], rules[t])
		for _, c := range p.kept {
			kept = append(kept, fmt.Sprintf("%s of table %s %s", c, t.family, t.name))
		}
		for _, r := range p.rules {
			fmt.Fprintln(&b, r.text)
		}
		for _, verb := range []string{"flush", "delete"} {
			for _, c := range p.chains {
				fmt.Fprintf(&b, "%s chain %s %s %s\n", verb, t.family, t.name, c)
			}
		}
	}
	return b.String(), kept, nil
}
