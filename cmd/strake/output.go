package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// What commands print beside lines for people: outputJSON all that print what a machine could want.
const (
	outputJSON = "json"
	outputWide = "wide"
)

// format is the value of a flag -o. Words that the command does not know are no value, so that nothing is done first.
type format struct {
	to    *string
	known []string
}

func (f format) String() string { return *f.to }
func (f format) Type() string   { return "string" }
func (f format) Set(v string) error {
	if !slices.Contains(f.known, v) {
		return fmt.Errorf("this command knows %s", strings.Join(f.known, " and "))
	}
	*f.to = v
	return nil
}

// outputFlag gives a command its flag -o.
func outputFlag(cmd *cobra.Command, output *string, more ...string) {
	f := format{output, append([]string{outputJSON}, more...)}
	usage := `"json" for machines`
	if slices.Contains(more, outputWide) {
		usage += `, "wide" for more`
	}
	cmd.Flags().VarP(f, "output", "o", usage)
	fixed(cmd, "output", f.known...)
}

// show prints for people or for machines.
func show(w io.Writer, output string, v any, print func(io.Writer)) error {
	if output != outputJSON {
		print(w)
		return nil
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
