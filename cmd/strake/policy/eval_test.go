package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/strake-io/strake/netpol/manifests"
)

const shop = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: front}
spec:
  replicas: 2
  selector: {matchLabels: {app: front}}
  template:
    metadata: {labels: {app: front}}
    spec: {containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: c, image: i, ports: [{name: http, containerPort: 80}]}]}
status: {podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, labels: {app: db}}
spec: {containers: [{name: c, image: i, ports: [{name: pg, containerPort: 5432}]}]}
status: {podIP: 10.1.0.2, podIPs: [{ip: 10.1.0.2}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: pg}]}]}
`

func folder(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "shop.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// eval runs the command and tells its exit code.
func eval(t *testing.T, stdin string, args ...string) (stdout string, code int, err error) {
	t.Helper()
	cmd := Command("", noNode, noRecords, noDNS)
	var out, errs bytes.Buffer
	cmd.SetArgs(append([]string{"eval"}, args...))
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err = cmd.Execute()
	if e := (Exit{}); errors.As(err, &e) {
		return out.String(), e.Code, err
	}
	if err != nil {
		return out.String(), 1, err
	}
	return out.String(), 0, nil
}

func TestEvalTells(t *testing.T) {
	dir := folder(t, shop)
	for _, c := range []struct{ from, to, port, want string }{
		{"default/web", "default/db", "5432/TCP", "allowed: default/web -> default/db 5432/TCP\n  egress   allowed: no policy selects it\n  ingress  allowed: rule 0 of default/db\n"},
		{"web", "default/db", "pg", "allowed: web (default/web) -> default/db pg/TCP\n  egress   allowed: no policy selects it\n  ingress  allowed: rule 0 of default/db\n"},
		{"front", "front", "http", "allowed: front (default/front-0) -> front (default/front-1) http/TCP\n  egress   allowed: no policy selects it\n  ingress  allowed: no policy selects it\n"},
		{"front-1", "front", "http", "allowed: front-1 (default/front-1) -> front (default/front-0) http/TCP\n  egress   allowed: no policy selects it\n  ingress  allowed: no policy selects it\n"},
		{"front", "front-0", "http", "allowed: front (default/front-1) -> front-0 (default/front-0) http/TCP\n  egress   allowed: no policy selects it\n  ingress  allowed: no policy selects it\n"},
		{"front-0", "front-0", "http", "allowed: front-0 (default/front-0) -> front-0 (default/front-0) http/TCP\n  egress   allowed: the pod's own address: it does not leave the pod\n  ingress  allowed: the pod's own address: it does not leave the pod\n"},
		{"10.1.0.1", "10.1.0.2", "5432", "allowed: 10.1.0.1 -> 10.1.0.2 5432/TCP\n  egress   allowed: no policy selects it\n  ingress  allowed: rule 0 of default/db\n"},
		{"default/web", "default/db", "5433/tcp", "denied: default/web -> default/db 5433/TCP\n  egress   allowed: no policy selects it\n  ingress  denied: isolated by default/db; nearest: rule 0 of default/db admits the port pg/TCP (5432 of default/db) from it\n"},
		{"default/front", "default/db", "5432/TCP", "denied: default/front (default/front-0) -> default/db 5432/TCP\n  egress   allowed: no policy selects it\n  ingress  denied: isolated by default/db; nearest: rule 0 of default/db admits the port pg/TCP (5432 of default/db) from pods with app=web in namespace default, but not from this one\n"},
		{"198.51.100.1", "default/front-1", "http", "allowed: 198.51.100.1 -> default/front-1 http/TCP\n  egress   allowed: not a pod: no policy selects it\n  ingress  allowed: no policy selects it\n"},
		{"default/web", "default/db", "ICMP", "denied: default/web -> default/db ICMP\n  egress   allowed: no policy selects it\n  ingress  denied: isolated by default/db; nearest: rule 0 of default/db admits the port pg/TCP (5432 of default/db) from it\n"},
	} {
		out, code, err := eval(t, "", "-f", dir, "--from", c.from, "--to", c.to, "--port", c.port)
		if out != c.want || code != 0 || err != nil {
			t.Errorf("%s -> %s %s: exit code %d, %v\n got %s\nwant %s", c.from, c.to, c.port, code, err, out, c.want)
		}
	}
	out, code, err := eval(t, "", "-f", dir, "--from", "default/web", "--to", "default/db", "--port", "80", "--exit-code")
	if code != evalDenied || err == nil || !strings.HasPrefix(out, "denied: ") {
		t.Errorf("a denied question with --exit-code: exit code %d, %v: %s", code, err, out)
	}
	if _, code, _ := eval(t, "", "-f", dir, "--from", "default/web", "--to", "default/db", "--port", "5432", "--exit-code"); code != 0 {
		t.Errorf("an allowed one: exit code %d", code)
	}
}

func TestEvalJSON(t *testing.T) {
	out, code, err := eval(t, "", "-f", folder(t, shop), "--from", "default/web", "--to", "default/db", "--port", "81/TCP", "-o", "json")
	var got struct {
		From, To, Protocol string
		Port               int
		Allowed            bool
		Egress, Ingress    struct {
			Allowed bool
			Tier    string
			Policy  *struct{ Kind, Namespace, Name string }
			Rule    int
			Why     string
		}
	}
	if code != 0 || err != nil || json.Unmarshal([]byte(out), &got) != nil {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}
	if got.From != "default/web" || got.Port != 81 || got.Protocol != "TCP" || got.Allowed || !got.Egress.Allowed || got.Egress.Rule != -1 || got.Egress.Policy != nil ||
		got.Ingress.Policy == nil || got.Ingress.Policy.Name != "db" || got.Ingress.Tier != "NetworkPolicy" || got.Ingress.Rule != -1 {
		t.Errorf("%+v", got)
	}
}

func TestEvalTellsOfShadow(t *testing.T) {
	dir := folder(t, shop+`---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: soon, annotations: {strake.io/policy-mode: shadow}}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 81}]}]}
`)
	for _, engine := range engineNames[:2] {
		out, code, err := eval(t, `[{"from":"default/web","to":"default/db","port":5432},{"from":"default/front","to":"default/db","port":5432}]`, "-f", dir, "--batch", "-", "--engine", engine)
		var got []struct {
			Allowed bool
			Shadow  *struct {
				Allowed bool
				Egress  struct{ Policy struct{ Name string } }
			}
		}
		if code != 0 || err != nil || json.Unmarshal([]byte(out), &got) != nil || len(got) != 2 {
			t.Fatalf("%s: exit code %d, %v: %s", engine, code, err, out)
		}
		if !got[0].Allowed || got[0].Shadow == nil || got[0].Shadow.Allowed || got[0].Shadow.Egress.Policy.Name != "soon" || got[1].Shadow != nil {
			t.Errorf("%s: %s", engine, out)
		}
	}
	out, _, _ := eval(t, "", "-f", dir, "--from", "default/web", "--to", "default/db", "--port", "5432")
	if !strings.HasPrefix(out, "allowed: ") || !strings.Contains(out, "\nwith the policies in shadow: denied\n  egress   denied: isolated by default/soon; nearest: rule 0 of default/soon admits 81/TCP to it\n") {
		t.Error(out)
	}
}

// An address, and the names of its ports, are those of the pod that has it now: neither one's that has ended, nor a hostNetwork pod's.
func TestEvalKnowsWhoHasAnAddress(t *testing.T) {
	dir := folder(t, `
{apiVersion: v1, kind: Pod, metadata: {name: now}, spec: {containers: [{name: c, image: x, ports: [{name: http, containerPort: 8080}]}]}, status: {podIPs: [{ip: 10.1.0.9}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: was}, spec: {containers: [{name: c, image: x}]}, status: {phase: Succeeded, podIPs: [{ip: 10.1.0.9}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host}, spec: {nodeName: n1, hostNetwork: true, containers: [{name: c, image: x, ports: [{name: http, containerPort: 8080, hostPort: 8080}]}]}, status: {podIPs: [{ip: 192.0.2.1}]}}
`)
	if out, code, err := eval(t, "", "-f", dir, "--from", "198.51.100.1", "--to", "10.1.0.9", "--port", "http"); code != 0 || !strings.HasPrefix(out, "allowed") {
		t.Errorf("exit code %d, %v: %s", code, err, out)
	}
	if out, code, err := eval(t, "", "-f", dir, "--from", "default/now", "--to", "192.0.2.1", "--port", "http"); code != evalFailed || !strings.Contains(fmt.Sprint(err), "is no pod's address") {
		t.Errorf("exit code %d, %v: %s", code, err, out)
	}
}

// A Service's address is told of, and no workload that has a Service's name.
func TestEvalNotesServices(t *testing.T) {
	dir := folder(t, shop+"---\napiVersion: v1\nkind: Service\nmetadata: {name: front}\nspec: {clusterIP: 10.96.0.7}\n")
	for to, noted := range map[string]bool{"10.96.0.7": true, "default/front": false} {
		cmd := Command("", noNode, noRecords, noDNS)
		var errs strings.Builder
		cmd.SetArgs([]string{"eval", "-f", dir, "--from", "default/web", "--to", to, "--port", "80"})
		cmd.SetOut(io.Discard)
		cmd.SetErr(&errs)
		if err := cmd.Execute(); err != nil || strings.Contains(errs.String(), "is the address of the Service default/front") != noted {
			t.Errorf("to %s: %v, %q", to, err, errs.String())
		}
	}
}

func TestEvalErrors(t *testing.T) {
	dir := folder(t, shop)
	question := func(from, to, port string) []string {
		return []string{"-f", dir, "--from", from, "--to", to, "--port", port}
	}
	for want, args := range map[string][]string{
		"from: no pod default/wbe; did you mean default/web?":                          question("default/wbe", "default/db", "80"),
		"to: no pod shop/db; did you mean default/db?":                                 question("default/web", "shop/db", "80"),
		"to: no pod default/elsewhere":                                                 question("default/web", "default/elsewhere", "80"),
		"to: no pod default/frnot-1; did you mean default/front-1?":                    question("default/web", "default/frnot-1", "80"),
		"port 0: it must be between 1 and 65535":                                       question("default/web", "default/db", "0"),
		"port 65536: it must be between 1 and 65535":                                   question("default/web", "default/db", "65536/UDP"),
		`protocol "FTP": TCP, UDP, SCTP, ICMP, ICMPv6 and numbers to 255 are known`:    question("default/web", "default/db", "80/ftp"),
		"port http: pod default/db has no TCP port of that name; it has pg (5432/TCP)": question("default/web", "default/db", "http"),
		"port pg: pod default/db has no UDP port of that name; it has pg (5432/TCP)":   question("default/web", "default/db", "pg/UDP"),
		"port http: 198.51.100.1 is no pod's address, and has no named ports":          question("default/web", "198.51.100.1", "http"),
		"eval wants --from, --to and --port, or --batch":                               {"-f", dir, "--from", "default/web"},
		"--batch has its own from, to and port":                                        {"-f", dir, "--from", "default/web", "--batch", "-"},
		"--exit-code is for one question, not for --batch":                             {"-f", dir, "--exit-code", "--batch", "-"},
		"- is named twice: the standard input can be read once":                        {"-f", "-", "--batch", "-"},
		`"default/web" is no flag: eval wants --from, --to and --port`:                 {"-f", dir, "default/web"},
		"-o yaml: this command knows text and json":                                    append(question("default/web", "default/db", "80"), "-o", "yaml"),
		"--port 80/TCP/IP: it is NUMBER/PROTOCOL, such as 53/UDP":                      question("default/web", "default/db", "80/TCP/IP"),
		"unknown flag: --form":                                                         {"--form", "x"},
	} {
		out, code, err := eval(t, "", args...)
		if code != evalFailed || err == nil || err.Error() != want || out != "" {
			t.Errorf("%v: exit code %d, %v, must be %q: %s", args, code, err, want, out)
		}
	}
	withService := folder(t, shop+"---\napiVersion: v1\nkind: Service\nmetadata: {name: backend}\nspec: {clusterIP: 10.96.0.7}\n")
	want := "to: no pod default/backend, but a Service: policies judge what comes to the pods behind it, ask about one of them"
	if _, code, err := eval(t, "", "-f", withService, "--from", "default/web", "--to", "default/backend", "--port", "80"); code != evalFailed || err == nil || err.Error() != want {
		t.Errorf("a Service by name: exit code %d, %v", code, err)
	}
	if out, code, err := eval(t, "", "-f", withService, "--from", "default/web", "--to", "10.96.0.7", "--port", "80"); code != 0 || err != nil || !strings.HasPrefix(out, "allowed") {
		t.Errorf("a Service's address: exit code %d, %v: %s", code, err, out)
	}
	broken := folder(t, shop+"---\napiVersion: v1\nkind: Pod\nmetadata: [\n")
	if _, code, err := eval(t, "", "-f", broken, "--from", "default/web", "--to", "default/db", "--port", "80"); code != evalFailed || err == nil {
		t.Errorf("rubbish manifests: exit code %d, %v", code, err)
	}
}

func TestEvalBatch(t *testing.T) {
	dir := folder(t, shop)
	type element struct {
		From, To, Protocol, Error string
		Port                      any
		Allowed                   bool
		Egress, Ingress           *struct{ Why string }
	}
	batch := `[{"from":"default/web","to":"default/db","port":5432,"protocol":"TCP"},
		{"from":"default/front-0","to":"default/db","port":5432},
		{"from":"default/web","to":"default/db","port":"pg"},
		{"from":"default/web","to":"default/gone","port":5432,"protocol":"TCP"},
		5,
		{"from":"default/web","to":"default/db","prt":5432},
		{"from":"default/web","to":"default/db","port":1.5},
		{"from":"default/web","to":"default/db"},
		{"from":"10.1.0.1","to":"default/db","protocol":"ICMP"}]`
	want := []struct {
		allowed bool
		err     string
	}{{allowed: true}, {}, {allowed: true}, {err: "no pod default/gone"}, {err: "no query"}, {err: `unknown field "prt"`}, {err: "between 1 and 65535"}, {err: "port is missing"}, {}}
	check := func(out string, code int, err error) {
		t.Helper()
		var got []element
		if e := json.Unmarshal([]byte(out), &got); e != nil || len(got) != len(want) {
			t.Fatalf("%v: %s", e, out)
		}
		for i, g := range got {
			if g.Allowed != want[i].allowed || (g.Error == "") != (want[i].err == "") || !strings.Contains(g.Error, want[i].err) || (g.Error == "") != (g.Ingress != nil && g.Ingress.Why != "") {
				t.Errorf("%d: %+v, must be %+v", i, g, want[i])
			}
		}
		if got[0].From != "default/web" || got[0].Port != 5432.0 || got[2].Port != "pg" || got[3].To != "default/gone" {
			t.Errorf("the queries are repeated: %s", out)
		}
		if code != evalFailed || err == nil || !strings.HasPrefix(err.Error(), "5 of 9 queries have no answer; the first is number 3: to: no pod default/gone") {
			t.Errorf("exit code %d, %v", code, err)
		}
	}
	check(eval(t, batch, "-f", dir, "--batch", "-"))
	file := filepath.Join(t.TempDir(), "queries.json")
	if err := os.WriteFile(file, []byte(batch), 0o600); err != nil {
		t.Fatal(err)
	}
	check(eval(t, "", "-f", dir, "--batch", file, "-o", "json"))
	if out, code, err := eval(t, "[]", "-f", dir, "--batch", "-"); out != "[]\n" || code != 0 || err != nil {
		t.Errorf("no queries: exit code %d, %v: %s", code, err, out)
	}
	if out, code, err := eval(t, `[{"from":"default/web","to":"default/db","port":1}]`, "-f", dir, "--batch", "-"); code != 0 || err != nil {
		t.Errorf("all answered: exit code %d, %v: %s", code, err, out)
	}
	for _, rubbish := range []string{"", "{}", `{"from":"a"}`, "[", `[{"from":]`, "null x"} {
		if out, code, err := eval(t, rubbish, "-f", dir, "--batch", "-"); code != evalFailed || err == nil || out != "" {
			t.Errorf("%q: exit code %d, %v: %s", rubbish, code, err, out)
		}
	}
	if _, code, err := eval(t, "", "-f", dir, "--batch", "/nowhere.json"); code != evalFailed || err == nil {
		t.Errorf("no file: exit code %d, %v", code, err)
	}
}

// FuzzQueries: whatever is asked gets an answer or a reason.
func FuzzQueries(f *testing.F) {
	f.Add(`{"from":"default/web","to":"default/db","port":5432,"protocol":"TCP"}`)
	f.Add(`{"from":"10.1.0.1","to":"::ffff:10.1.0.2","port":"pg","protocol":"sctp"}`)
	f.Add(`{"from":"fe80::1%eth0","to":"/","port":-1,"protocol":"300"}`)
	f.Add(`{"from":"default/","to":"//","port":1e3,"protocol":"58"}`)
	s, problems := manifests.Parse("town", []byte(town))
	if len(problems) > 0 {
		f.Fatal(problems)
	}
	asked := newResolver(s)
	var engines []engine
	for _, name := range engineNames[:2] {
		e, err := newEngine(name, s, func(problem string) { f.Error(problem) })
		if err != nil {
			f.Fatal(err)
		}
		engines = append(engines, e)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var said []string
		for _, e := range engines {
			for _, a := range answerAll(asked, e, []query{readQuery([]byte(text))}) {
				if (a.Error == "") != (a.Egress != nil && a.Ingress != nil) || a.Error != "" && a.Allowed {
					t.Errorf("%q: %+v", text, a)
				}
				if _, err := marshal(a); err != nil {
					t.Errorf("%q: %v", text, err)
				}
				said = append(said, fmt.Sprint(a.Allowed, a.Error))
			}
		}
		if said[0] != said[1] {
			t.Errorf("%q: the reference says %s, the rows %s", text, said[0], said[1])
		}
	})
}
