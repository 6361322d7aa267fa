package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/netpol/analysis"
)

const cluster = `
{apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, labels: {app: db}}, spec: {containers: [{name: c, image: i, ports: [{containerPort: 5432}]}]}}
---
`

const dbPolicy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db}, spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]}}\n"

// manifestsOf makes a folder of manifests.
func manifestsOf(t *testing.T, texts ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i, text := range texts {
		if err := os.WriteFile(filepath.Join(dir, string(rune('a'+i))+".yaml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// ask runs a command of the group as a shell would, and gives its exit code.
func ask(t *testing.T, stdin string, args ...string) (code int, out, errs string) {
	t.Helper()
	cmd := Command(filepath.Join(t.TempDir(), "none"), noNode, noRecords, noDNS)
	var stdout, stderr bytes.Buffer
	cmd.SetArgs(args)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&stdout)
	cmd.SetErr(&stderr)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err := cmd.Execute()
	var e Exit
	switch {
	case errors.As(err, &e):
		code = e.Code
	case err != nil:
		code = broken
	}
	if err != nil {
		stderr.WriteString(err.Error())
	}
	return code, stdout.String(), stderr.String()
}

func TestExitCodes(t *testing.T) {
	full, bare, only := manifestsOf(t, cluster, dbPolicy), manifestsOf(t, cluster), manifestsOf(t, dbPolicy)
	bad := manifestsOf(t, cluster, strings.Replace(dbPolicy, "port: 5432", "prot: 5432", 1))
	blocks := manifestsOf(t, cluster, "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db}, spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/15}}], ports: [{port: 5432}]}]}}\n")
	intents := filepath.Join(manifestsOf(t, "- allow default/web -> default/db:5432/TCP\n"), "a.yaml")
	for name, test := range map[string]struct {
		args []string
		code int
		out  string // part of it
		errs string
	}{
		"matrix":                  {[]string{"matrix", "-f", full}, 0, "TCP 5432", ""},
		"matrix of a choice":      {[]string{"matrix", "-f", full, "--from", "world", "-o", "csv"}, 0, "world,default/db,none,none", ""},
		"matrix of a bad choice":  {[]string{"matrix", "-f", full, "--to", "["}, 2, "", "--to ["},
		"matrix of problems":      {[]string{"matrix", "-f", bad}, 2, "", `b.yaml:1: NetworkPolicy default/db: unknown field "spec.ingress[0].ports[0].prot"`},
		"matrix in spite of them": {[]string{"matrix", "-f", bad, "--ignore-problems"}, 0, "FROM", "unknown field"},
		"matrix of nothing":       {[]string{"matrix", "-f", filepath.Join(full, "none")}, 2, "", "no such file"},
		"findings of nobody":      {[]string{"lint", "-f", manifestsOf(t, "{apiVersion: v1, kind: ConfigMap, metadata: {name: x}}")}, 2, "", "neither pods, workloads nor policies are there"},
		"no cluster":              {[]string{"matrix"}, 2, "", "no cluster to ask"},
		"an unknown format":       {[]string{"matrix", "-f", full, "-o", "xml"}, 2, "", "-o xml: this command knows text, json, csv, html or dot"},
		"the same":                {[]string{"diff", full, full}, 0, "0 may more, 0 may less", ""},
		"a difference":            {[]string{"diff", bare, full}, 1, "NetworkPolicy default/db added", ""},
		"a folder of policies":    {[]string{"diff", full, only}, 0, "0 may more", ""},
		"a difference for two":    {[]string{"diff", bare, full, "-o", "json"}, 1, `"closed": "all but TCP 5432"`, ""},
		"replace in two folders":  {[]string{"diff", bare, full, "--replace"}, 2, "", "--replace"},
		"diff of problems":        {[]string{"diff", full, bad}, 2, "", "unknown field"},
		"findings":                {[]string{"lint", "-f", bare}, 1, "unguarded-workload", ""},
		"findings that are borne": {[]string{"lint", "-f", bare, "--fail-on", "error"}, 0, "unguarded-workload", ""},
		"findings left out":       {[]string{"lint", "-f", bare, "--skip", "unguarded-workload"}, 0, "0 findings", ""},
		"findings and places":     {[]string{"lint", "-f", full, "-o", "sarif", "--fail-on", "never"}, 0, `a.yaml"`, ""},
		"an unknown check":        {[]string{"lint", "-f", full, "--skip", "x"}, 2, "", "--skip x"},
		"an unknown severity":     {[]string{"lint", "-f", full, "--fail-on", "x"}, 2, "", "--fail-on x"},
		"an assertion holds":      {[]string{"check", intents, "-f", full}, 0, "1 hold", ""},
		"an assertion fails":      {[]string{"check", "-f", full, "-e", "deny default/db <- *"}, 1, "default/web -> default/db", ""},
		"no assertions":           {[]string{"check", "-f", full}, 2, "", "no assertions"},
		"an assertion is none":    {[]string{"check", "-f", full, "-e", "deny web"}, 2, "", "one -> or <-"},
		"a report":                {[]string{"report", intents, "-f", full}, 0, "What is meant", ""},
		"a report of a failure":   {[]string{"report", "-f", full, "-e", "deny default/db <- *", "-o", "json"}, 1, `"fingerprint": "sha256:`, ""},
		"a report of problems":    {[]string{"report", "-f", bad, "--ignore-problems", "-o", "csv"}, 0, "unknown field", ""},
		"a range of pods":         {[]string{"matrix", "-f", blocks, "--pod-cidr", "10.244.0.0/16", "--to", "default/db", "-o", "csv"}, 0, "default/web,default/db,some,TCP 5432", ""},
		"no range of pods":        {[]string{"matrix", "-f", blocks, "--to", "default/db", "-o", "csv"}, 0, "default/web,default/db,none", ""},
		"a range of another":      {[]string{"matrix", "-f", blocks, "--pod-cidr", "172.20.0.0/16", "--to", "default/db", "-o", "csv"}, 0, "default/web,default/db,none", ""},
		"a part of the range":     {[]string{"matrix", "-f", blocks, "--pod-cidr", "10.0.0.0/8", "--to", "default/db", "-o", "csv"}, 0, "default/web,default/db,none", ""},
		"a range that is none":    {[]string{"matrix", "-f", blocks, "--pod-cidr", "10.244.0.1/16"}, 2, "", "10.244.0.0/16"},
		"two ranges of a family":  {[]string{"matrix", "-f", blocks, "--pod-cidr", "10.244.0.0/16", "--pod-cidr", "10.245.0.0/16"}, 2, "", "another one of its family"},
		"a range without room":    {[]string{"matrix", "-f", blocks, "--pod-cidr", "10.244.0.0/31"}, 2, "", "not enough addresses"},
		"a range of the cluster":  {[]string{"matrix", "--pod-cidr", "10.244.0.0/16"}, 2, "", "--pod-cidr is about manifests"},
		"JUnit":                   {[]string{"check", intents, "-f", full, "-o", "junit"}, 0, "<testcase", ""},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := ask(t, "", test.args...)
			if code != test.code || !strings.Contains(out, test.out) || !strings.Contains(errs, test.errs) {
				t.Errorf("exit code %d, %q, %q", code, out, errs)
			}
			if i := strings.Join(test.args, " "); code < 2 && strings.Contains(i, "-o json") && !json.Valid([]byte(out)) {
				t.Errorf("no JSON: %s", out)
			}
		})
	}
}

func TestStdin(t *testing.T) {
	if code, out, errs := ask(t, cluster+dbPolicy, "matrix", "-f", "-"); code != 0 || !strings.Contains(out, "TCP 5432") {
		t.Errorf("%d %q %q", code, out, errs)
	}
	if code, out, errs := ask(t, "- deny default/db <- world\n", "check", "-", "-f", manifestsOf(t, cluster, dbPolicy)); code != 0 || !strings.Contains(out, "1 hold") {
		t.Errorf("%d %q %q", code, out, errs)
	}
	for _, args := range []string{"matrix -f - -f -", "diff - -", "check - -f -", "report - -f -", "replay --policies - -f -"} {
		if code, out, errs := ask(t, cluster+dbPolicy, strings.Fields(args)...); code != 2 || out != "" || !strings.Contains(errs, "- is named twice") {
			t.Errorf("%s: %d %q %q", args, code, out, errs)
		}
	}
}

// A cluster that is named beside manifests would not be asked: whoever names it means it.
func TestClusterBesideManifests(t *testing.T) {
	dir := manifestsOf(t, cluster, dbPolicy)
	for _, args := range [][]string{{"lint", "-f", dir, "--context", "prod"}, {"matrix", "-f", dir, "--kubeconfig", "prod.conf"}, {"diff", dir, dir, "--context", "prod"}} {
		if code, out, errs := ask(t, "", args...); code != 2 || out != "" || !strings.Contains(errs, "name a cluster, which is not asked") {
			t.Errorf("%v: %d %q %q", args, code, out, errs)
		}
	}
}

// TestHelp: each command has help and examples, and all that write have JSON and completions of their formats.
func TestHelp(t *testing.T) {
	for _, cmd := range Command("", noNode, noRecords, noDNS).Commands() {
		if cmd.Long == "" || cmd.Example == "" || cmd.Short == "" {
			t.Errorf("%s has no help or no examples", cmd.Name())
		}
		if cmd.Name() == "ui" { // it serves a page
			continue
		}
		f := cmd.Flags().Lookup("output")
		complete, ok := cmd.GetFlagCompletionFunc("output")
		if f == nil || !ok {
			t.Errorf("%s: -o is not there, or does not complete", cmd.Name())
			continue
		}
		words, _ := complete(&cobra.Command{}, nil, "")
		if !strings.Contains(strings.Join(words, " "), "json") {
			t.Errorf("%s: -o completes %v", cmd.Name(), words)
		}
	}
}

// noNode is a look where there is none.
func noNode(context.Context, int) (analysis.Evidence, error) {
	return analysis.Evidence{}, errors.New("there is no node here")
}

// noDNS is a cluster whose nodes don't answer its DNS.
func noDNS(context.Context, kubernetes.Interface) ([]netip.Addr, error) { return nil, nil }

// noRecords is a machine on which nothing is recorded.
func noRecords() ([]string, error) { return nil, nil }
