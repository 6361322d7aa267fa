// Package corefile reads the syntax of Corefiles: blocks of servers with directives. What these mean is not its matter.
package corefile

import (
	"fmt"
	"slices"
	"strings"
)

// Block is a server: for which zones it is, and what it does.
type Block struct {
	Keys       []string
	Directives []Directive
	Line       int
}

// Directive is a line of a block, and the lines in braces that belong to it.
type Directive struct {
	Name string
	Args []string
	Body []Directive
	Line int
}

// maxDepth bounds how deep braces and snippets go.
const maxDepth = 8

// maxDirectives bounds how much snippets in snippets can make.
const maxDirectives = 10_000

type token struct {
	text   string
	line   int
	quoted bool
}

func (t token) opens() bool  { return t.text == "{" && !t.quoted }
func (t token) closes() bool { return t.text == "}" && !t.quoted }

// Parse reads a Corefile. Snippets are put where they are imported; other imports stay, as directives.
func Parse(text string) ([]Block, error) {
	tokens, err := scan(text)
	if err != nil {
		return nil, err
	}
	p := parser{tokens: tokens, snippets: map[string][]Directive{}}
	var out []Block
	for !p.end() {
		b, err := p.block(len(out) == 0)
		if err != nil {
			return nil, err
		}
		if name, ok := snippet(b); ok {
			if _, twice := p.snippets[name]; twice {
				return nil, fmt.Errorf("line %d: snippet (%s) is there twice", b.Line, name)
			}
			p.snippets[name] = b.Directives
			continue
		}
		out = append(out, b)
	}
	return out, nil
}

func snippet(b Block) (string, bool) {
	if len(b.Keys) != 1 {
		return "", false
	}
	name, ok := strings.CutPrefix(b.Keys[0], "(")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(name, ")")
}

// scan makes words of a text. Quotes hold one together, and a backslash before a quote takes its meaning.
func scan(text string) ([]token, error) {
	var out []token
	var word strings.Builder
	line, begin := 1, 0
	quoted, inside, comment := false, false, false
	flush := func() {
		if inside {
			out = append(out, token{word.String(), begin, quoted})
		}
		word.Reset()
		inside, quoted = false, false
	}
	open := false // between quotes
	runes := []rune(strings.TrimPrefix(text, "\ufeff"))
	for i := 0; i < len(runes); i++ {
		c := runes[i]
		switch {
		case comment:
			comment = c != '\n'
		case open && c == '\\' && i+1 < len(runes) && runes[i+1] == '"':
			word.WriteRune('"')
			i++
		case open && c == '"':
			open = false
			flush()
		case open:
			word.WriteRune(c)
		case strings.ContainsRune(" \t\r\n", c):
			flush()
		case c == '#' && !inside:
			comment = true
		case c == '"' && !inside:
			inside, quoted, open, begin = true, true, true, line
		default:
			if !inside {
				inside, begin = true, line
			}
			word.WriteRune(c)
		}
		if c == '\n' {
			line++
		}
	}
	if open {
		return nil, fmt.Errorf("line %d: a quote is not closed", begin)
	}
	flush()
	return out, nil
}

type parser struct {
	tokens   []token
	at       int
	snippets map[string][]Directive
	made     int
}

func (p *parser) end() bool { return p.at >= len(p.tokens) }

// block reads keys and what is in their braces. The one block of a file may do without braces.
func (p *parser) block(first bool) (Block, error) {
	b := Block{Line: p.tokens[p.at].line}
	for {
		if p.end() {
			return b, fmt.Errorf("line %d: %s has no block", b.Line, strings.Join(b.Keys, " "))
		}
		t := p.tokens[p.at]
		if t.opens() {
			break
		}
		if t.closes() {
			return b, fmt.Errorf("line %d: } without {", t.line)
		}
		if n := len(b.Keys); n > 0 && t.line != p.tokens[p.at-1].line && !strings.HasSuffix(p.tokens[p.at-1].text, ",") {
			if !first {
				return b, fmt.Errorf("line %d: %s is followed by no {", p.tokens[p.at-1].line, strings.Join(b.Keys, " "))
			}
			var err error
			b.Directives, err = p.lines(0, false)
			return b, err
		}
		p.at++
		for key := range strings.SplitSeq(t.text, ",") {
			if key != "" {
				b.Keys = append(b.Keys, key)
			}
		}
	}
	if len(b.Keys) == 0 {
		return b, fmt.Errorf("line %d: a block for no zone", b.Line)
	}
	p.at++
	var err error
	b.Directives, err = p.lines(0, true)
	return b, err
}

// lines reads directives up to the closing brace, or to the end of the file.
func (p *parser) lines(depth int, braced bool) ([]Directive, error) {
	var out []Directive
	if depth > maxDepth {
		return nil, fmt.Errorf("line %d: braces are too deep", p.tokens[p.at-1].line)
	}
	for {
		if p.end() {
			if braced {
				return nil, fmt.Errorf("line %d: { without }", p.tokens[p.at-1].line)
			}
			return out, nil
		}
		t := p.tokens[p.at]
		if t.closes() {
			if !braced {
				return nil, fmt.Errorf("line %d: } without {", t.line)
			}
			p.at++
			return out, nil
		}
		if t.opens() {
			return nil, fmt.Errorf("line %d: { without a directive", t.line)
		}
		p.at++
		d := Directive{Name: t.text, Line: t.line}
		for !p.end() && p.tokens[p.at].line == p.tokens[p.at-1].line && !p.tokens[p.at].closes() {
			if p.tokens[p.at].opens() {
				p.at++
				body, err := p.lines(depth+1, true)
				if err != nil {
					return nil, err
				}
				d.Body = body
				break
			}
			d.Args = append(d.Args, p.tokens[p.at].text)
			p.at++
		}
		add := []Directive{d}
		if d.Name == "import" && len(d.Args) > 0 {
			if s, ok := p.snippets[d.Args[0]]; ok {
				add = slices.Clone(s)
			}
		}
		if p.made += len(add); p.made > maxDirectives {
			return nil, fmt.Errorf("line %d: more than %d directives", d.Line, maxDirectives)
		}
		out = append(out, add...)
	}
}
