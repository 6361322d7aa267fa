package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// everyCommand runs a test for each command that people are shown, but for kubectl's.
func everyCommand(t *testing.T, test func(t *testing.T, c *cobra.Command)) {
	t.Helper()
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == kubectlName {
			return
		}
		t.Run(c.CommandPath(), func(t *testing.T) { test(t, c) })
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(rootCommand(nil))
}

// Each command says what it is for, shows how it is used, and takes no word silently that means nothing.
func TestCommandsAreExplained(t *testing.T) {
	everyCommand(t, func(t *testing.T, c *cobra.Command) {
		if r := []rune(c.Short); len(r) == 0 || !unicode.IsUpper(r[0]) || strings.HasSuffix(c.Short, ".") {
			t.Errorf("its line in the help is %q", c.Short)
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("--%s is not explained", f.Name)
			}
		})
		if c.HasSubCommands() {
			return
		}
		if c.Example == "" {
			t.Error("it has no example")
		}
		words := strings.Fields(c.Use)[1:]
		takes := slices.ContainsFunc(words, func(w string) bool { // such as NAME, [FILE]; what follows a flag is its value
			i := slices.Index(words, w)
			return !strings.HasPrefix(w, "-") && (i == 0 || !strings.HasPrefix(words[i-1], "--"))
		})
		refuses := c.CommandPath() == "strake policy eval" // as it runs, with an exit code of its own
		if err := c.ValidateArgs([]string{"x", "y", "z", "u", "v"}); err == nil && !takes && !refuses {
			t.Error("it takes words, and its usage names none")
		}
	})
}

// quoted is a word of a shell that has quotes around it.
var quoted = regexp.MustCompile(`'[^']*'|"[^"]*"`)

// taken checks that the commands and flags of a shell's line are there, and returns the commands.
func taken(t *testing.T, line string) []string {
	t.Helper()
	var out []string
	for part := range strings.FieldsFuncSeq(quoted.ReplaceAllString(line, "Q"), func(r rune) bool { return strings.ContainsRune("|&;(", r) }) {
		words := strings.Fields(part)
		if len(words) == 0 || words[0] != "strake" && words[0] != "bin/strake" {
			continue
		}
		if i := slices.IndexFunc(words, func(w string) bool { return w == ">" || w == "#" || w == "…" }); i >= 0 {
			words = words[:i]
		}
		root := rootCommand(nil)
		root.InitDefaultCompletionCmd()
		sub, rest, err := root.Find(words[1:])
		if err != nil || sub.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") && rest[0] != "…" {
			t.Errorf("%q: there is no such command: %q, %v", line, rest, err)
			continue
		}
		if out = append(out, sub.CommandPath()); sub.Name() == kubectlName {
			continue
		}
		for _, w := range rest {
			name, long := strings.CutPrefix(w, "--")
			name, _, _ = strings.Cut(name, "=")
			short, dash := strings.CutPrefix(w, "-")
			switch {
			case long && name != "help" && sub.Flag(name) == nil:
				t.Errorf("%q: there is no flag --%s", line, name)
			case dash && !long && len(short) == 1 && sub.Flags().ShorthandLookup(short) == nil:
				t.Errorf("%q: there is no flag -%s", line, short)
			}
		}
	}
	return out
}

// Examples are command lines that are taken: their commands and flags are there.
func TestExamplesAreTaken(t *testing.T) {
	everyCommand(t, func(t *testing.T, c *cobra.Command) {
		var found []string
		for line := range strings.SplitSeq(c.Example, "\n") {
			found = append(found, taken(t, line)...)
		}
		if !c.HasSubCommands() && !slices.Contains(found, c.CommandPath()) {
			t.Error("no example is of the command itself")
		}
	})
}

// inline is code within a text.
var inline = regexp.MustCompile("`([^`\n]+)`")

// So are the command lines of the docs.
func TestDocsAreTaken(t *testing.T) {
	docs, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(docs) < 5 {
		t.Fatal(docs, err)
	}
	for _, doc := range append(docs, "../../README.md", "../../deploy/systemd/README.md") {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(filepath.Base(doc), func(t *testing.T) {
			for line := range strings.SplitSeq(string(text), "\n") {
				if strings.HasPrefix(line, "    ") {
					taken(t, line)
				}
				for _, m := range inline.FindAllStringSubmatch(line, -1) {
					taken(t, m[1])
				}
			}
		})
	}
}

// notForMachines are the commands that print nothing which a machine could want: they act, or serve, or write a file of a format of its own.
var notForMachines = []string{
	"strake up", "strake join", "strake down", "strake node remove", "strake token delete", "strake migrate", "strake snapshot restore",
	"strake server", "strake agent", "strake containerd", "strake dns serve", "strake dns translate",
}

// All others print JSON where they are asked to, and refuse other words before they do anything.
func TestCommandsPrintJSON(t *testing.T) {
	everyCommand(t, func(t *testing.T, c *cobra.Command) {
		if c.HasSubCommands() || slices.Contains(notForMachines, c.CommandPath()) {
			return
		}
		f := c.Flags().Lookup("output")
		if f == nil || f.Shorthand != "o" {
			t.Fatal("it has no flag -o")
		}
		complete, ok := c.GetFlagCompletionFunc("output")
		if !ok {
			t.Fatal("the shell does not complete -o")
		}
		known, _ := complete(c, nil, "")
		if !slices.Contains(known, outputJSON) {
			t.Errorf("-o knows %q", known)
		}
	})
}

// Words that name what there is are completed by it.
func TestNamesAreCompleted(t *testing.T) {
	everyCommand(t, func(t *testing.T, c *cobra.Command) {
		if use := strings.Fields(c.Use); len(use) > 1 && strings.Contains(use[1], "NAME") || strings.Contains(c.Use, " ID") {
			if !strings.HasPrefix(use[1], "-") && c.ValidArgsFunction == nil {
				t.Error("the shell completes no names")
			}
		}
		for _, flag := range []string{"pod", "namespace"} {
			if f := c.Flags().Lookup(flag); f != nil && c.Parent().Name() != "policy" && c.Name() != "trace" {
				if _, ok := c.GetFlagCompletionFunc(flag); !ok {
					t.Errorf("the shell completes no --%s", flag)
				}
			}
		}
	})
}

// What is wrong with a command line is told in one line, with the way to what is right.
func TestWrongCommandLines(t *testing.T) {
	for line, want := range map[string]string{
		"nonsense":                       "strake has no command \"nonsense\": `strake --help` lists them",
		"node nonsense":                  "strake node has no command \"nonsense\": `strake node --help` lists them",
		"dns nonsense now":               "strake dns has no command \"nonsense\": `strake dns --help` lists them",
		"policy nonsense":                "strake policy has no command \"nonsense\": `strake policy --help` lists them",
		"policy verify now":              "unknown command \"now\" for \"strake policy verify\"; usage: strake policy verify [flags]",
		"policy probe -o yaml":           "invalid argument \"yaml\" for \"-o, --output\" flag: this command knows json; `strake policy probe --help` lists its flags",
		"up three":                       "unknown command \"three\" for \"strake up\"; usage: strake up [flags]",
		"up --knodes 3":                  "unknown flag: --knodes; `strake up --help` lists its flags",
		"token delete":                   "accepts 1 arg(s), received 0; usage: strake token delete ID [flags]",
		"token create -o yaml":           "invalid argument \"yaml\" for \"-o, --output\" flag: this command knows json; `strake token create --help` lists its flags",
		"service list -o yaml":           "invalid argument \"yaml\" for \"-o, --output\" flag: this command knows json and wide; `strake service list --help` lists its flags",
		"policy matrix --knodes":         "unknown flag: --knodes; `strake policy matrix --help` lists its flags",
		"policy matrix here":             "unknown command \"here\" for \"strake policy matrix\"; usage: strake policy matrix [flags]",
		"migrate --to-layout many":       "invalid argument \"many\" for \"--to-layout\" flag: strconv.ParseUint: parsing \"many\": invalid syntax; `strake migrate --help` lists its flags",
		"connectivity test --families 4": "--families 4: there are ipv4 and ipv6",
	} {
		root := rootCommand(nil)
		root.SetArgs(strings.Fields(line))
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		err := root.ExecuteContext(t.Context())
		if err == nil || err.Error() != want {
			t.Errorf("%s\n got: %v\nwant: %s", line, err, want)
		}
		exit := exitError{code: 1}
		errors.As(err, &exit)
		if two := strings.HasPrefix(line, "policy "); two != (exit.code == 2) { // of the others 1 is the code of no answer
			t.Errorf("%s: exit code %d", line, exit.code)
		}
	}
}

// A flag may have a name that stands among the words of the command; a word stands there once.
func TestNamesThatStandThere(t *testing.T) {
	names := named(func(context.Context) ([]string, error) { return []string{"demo", "demo", "dns", "web"}, nil })
	cmd := &cobra.Command{Use: "get", ValidArgsFunction: names}
	cmd.Flags().String("namespace", "", "")
	completed(cmd, "namespace", names)
	cmd.SetContext(t.Context())
	flag, _ := cmd.GetFlagCompletionFunc("namespace")
	for _, test := range []struct {
		complete cobra.CompletionFunc
		want     []string
	}{{flag, []string{"demo", "dns"}}, {cmd.ValidArgsFunction, []string{"dns"}}} {
		if got, _ := test.complete(cmd, []string{"demo"}, "d"); !slices.Equal(got, test.want) {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}
