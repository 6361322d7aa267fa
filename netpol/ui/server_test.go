package ui_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/strake-io/strake/netpol/analysis"
	"github.com/strake-io/strake/netpol/manifests"
	"github.com/strake-io/strake/netpol/ui"
)

const cluster = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default, labels: {app: web}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: default, labels: {app: db}}
spec: {containers: [{name: c, image: x, ports: [{containerPort: 5432}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: db
  annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}"}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: nobody}}}]
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
`

// page is a server with a browser that was let in.
type page struct {
	*testing.T
	url, token string
	browser    *http.Client
}

func serve(t *testing.T, text *string, records ...string) page {
	t.Helper()
	var server *ui.Server
	var streamed atomic.Bool
	l := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.UserAgent(), "Chrome") && r.URL.Path == "/api/flows" { // its virtual time stands still while a request goes on
			if streamed.Swap(true) {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			ctx, stop := context.WithTimeout(r.Context(), time.Second)
			defer stop()
			r = r.WithContext(ctx)
		}
		server.ServeHTTP(w, r)
	}))
	t.Cleanup(l.Close)
	read := func(context.Context) (ui.Reading, error) {
		state, problems := manifests.Parse("test", []byte(*text))
		for _, p := range problems {
			t.Error(p)
		}
		return ui.Reading{State: state, Where: func(_, _, name string) (string, int) { return name + ".yaml", 7 }}, nil
	}
	var err error
	server, err = ui.New(t.Context(), ui.Config{Source: "test", Read: read, Records: func() ([]string, error) { return records, nil }}, l.Listener.Addr())
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return page{t, l.URL, server.Path(), &http.Client{Jar: jar}}
}

func (p page) enter() page {
	p.Helper()
	if code, body := p.ask(http.MethodGet, p.token, "", nil); code != http.StatusOK || !strings.Contains(body, "<title>") {
		p.Fatalf("with the token: %d %s", code, body)
	}
	return p
}

func (p page) ask(method, path, body string, header map[string]string) (int, string) {
	p.Helper()
	r, err := http.NewRequestWithContext(p.Context(), method, p.url+path, strings.NewReader(body))
	if err != nil {
		p.Fatal(err)
	}
	for k, v := range header {
		if k == "Host" {
			r.Host = v
		}
		r.Header.Set(k, v)
	}
	answer, err := p.browser.Do(r)
	if err != nil {
		p.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		p.Fatal(err)
	}
	if !strings.Contains(answer.Header.Get("Content-Security-Policy"), "default-src 'none'") {
		p.Errorf("%s: no content security policy", path)
	}
	return answer.StatusCode, string(text)
}

func (p page) get(path string, into any) {
	p.Helper()
	code, body := p.ask(http.MethodGet, path, "", nil)
	if code != http.StatusOK {
		p.Fatalf("%s: %d %s", path, code, body)
	}
	if err := json.Unmarshal([]byte(body), into); err != nil {
		p.Fatalf("%s: %v in %s", path, err, body)
	}
}

func TestWhoMayCome(t *testing.T) {
	text := cluster
	stranger, friend := serve(t, &text), serve(t, &text).enter()
	for _, c := range []struct {
		name         string
		of           page
		method, path string
		header       map[string]string
		want         int
	}{
		{"no token", stranger, "GET", "/", nil, 401},
		{"no token, a file", stranger, "GET", "/app.js", nil, 401},
		{"no token, the API", stranger, "GET", "/api/matrix", nil, 401},
		{"a wrong token", stranger, "GET", "/?token=00", nil, 401},
		{"an empty token", stranger, "GET", "/?token=", nil, 401},
		{"a wrong cookie", stranger, "GET", "/api/matrix", map[string]string{"Cookie": "strake-policy=x"}, 401},
		{"the cookie", friend, "GET", "/api/matrix", nil, 200},
		{"a file", friend, "GET", "/app.js", nil, 200},
		{"no such file", friend, "GET", "/nothing", nil, 404},
		{"a name of another site", friend, "GET", "/api/matrix", map[string]string{"Host": "evil.example"}, 421},
		{"another site asks", friend, "POST", "/api/reload", map[string]string{"Origin": "http://evil.example"}, 403},
		{"the page asks", friend, "POST", "/api/reload", map[string]string{"Origin": friend.url}, 200},
		{"a wrong method", friend, "GET", "/api/reload", nil, 405},
		{"a wrong method of a file", friend, "POST", "/app.js", nil, 405},
	} {
		t.Run(c.name, func(t *testing.T) {
			if code, body := c.of.ask(c.method, c.path, "", c.header); code != c.want {
				t.Errorf("%d %s, want %d", code, body, c.want)
			}
		})
	}
}

func TestMatrixAndReload(t *testing.T) {
	text := cluster
	p := serve(t, &text).enter()
	var m struct {
		Ends    []analysis.End
		Rows    [][]int
		Answers []struct {
			Allowed string
			Ranges  []analysis.Range
		}
		Policies []struct{ Namespace, Name string }
	}
	p.get("/api/matrix", &m)
	at := func(name string) int {
		for i, e := range m.Ends {
			if e.Name == name {
				return i
			}
		}
		t.Fatalf("no %s in %v", name, m.Ends)
		return -1
	}
	a := m.Answers[m.Rows[at("default/web")][at("default/db")]]
	if a.Allowed != "TCP 5432" {
		t.Errorf("web reaches db on %q", a.Allowed)
	}
	for _, r := range a.Ranges {
		if r.Allowed && (r.IngressRule == nil || r.IngressRule.Rule != 1 || r.IngressRule.Policy.Name != "db") {
			t.Errorf("5432 is allowed by %+v, want rule 1 of db", r.IngressRule)
		}
	}
	if len(m.Policies) != 1 || m.Policies[0].Name != "db" {
		t.Errorf("policies: %v", m.Policies)
	}
	text = strings.ReplaceAll(text, "port: 5432}]\n", "port: 5433}]\n")
	if code, body := p.ask(http.MethodPost, "/api/reload", "{}", nil); code != 200 || !strings.Contains(body, "TCP 5433") {
		t.Errorf("after the change: %d %s", code, body)
	}
}

func TestPolicyOfARule(t *testing.T) {
	text := cluster
	p := serve(t, &text).enter()
	for _, c := range []struct {
		name, query string
		code        int
		marked      string // the lines of the rule
	}{
		{"a rule", "kind=NetworkPolicy&namespace=default&name=db&direction=ingress&rule=1", 200, "- from:\n    - podSelector:\n        matchLabels:\n          app: web\n    ports:\n    - port: 5432"},
		{"isolation", "kind=NetworkPolicy&namespace=default&name=db&direction=ingress&rule=-1", 200, "podSelector:\n    matchLabels:\n      app: db"},
		{"a rule too many", "kind=NetworkPolicy&namespace=default&name=db&direction=ingress&rule=2", 200, ""},
		{"no direction", "kind=NetworkPolicy&namespace=default&name=db", 200, ""},
		{"rubbish", "kind=NetworkPolicy&namespace=default&name=db&direction=up&rule=x", 400, ""},
		{"gone", "kind=NetworkPolicy&namespace=default&name=dbb", 404, ""},
		{"another kind", "kind=Secret&namespace=default&name=db", 404, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, body := p.ask(http.MethodGet, "/api/policy?"+c.query, "", nil)
			if code != c.code {
				t.Fatalf("%d %s, want %d", code, body, c.code)
			}
			if code != 200 {
				return
			}
			var said struct {
				YAML        string
				First, Last int
				File        string
			}
			if err := json.Unmarshal([]byte(body), &said); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(said.YAML, "last-applied") || said.File != "db.yaml" {
				t.Errorf("%s of %s", said.YAML, said.File)
			}
			marked := ""
			if said.First >= 0 {
				marked = strings.TrimSpace(strings.Join(strings.Split(said.YAML, "\n")[said.First:said.Last+1], "\n"))
			}
			if marked != c.marked {
				t.Errorf("marked:\n%s\nwant:\n%s", marked, c.marked)
			}
		})
	}
}

func TestTryAChange(t *testing.T) {
	text := cluster
	p := serve(t, &text).enter()
	for _, c := range []struct {
		name, body string
		code       int
		want       string // part of the answer
	}{
		{"a policy less", `{"yaml":"","without":[{"kind":"NetworkPolicy","namespace":"default","name":"db"}]}`, 200, `"what":"removed"`},
		{"one replaced", `{"yaml":"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db}\nspec: {podSelector: {matchLabels: {app: db}}}"}`, 200, `"closed":"TCP 5432"`},
		{"one more", `{"yaml":"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web}\nspec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}"}`, 200, `"what":"added"`},
		{"nothing", `{"yaml":""}`, 200, `"changes":[]`},
		{"an invalid one", `{"yaml":"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db}\nspec: {podSelector: {}, ingress: [{ports: [{port: 70000}]}]}"}`, 200, "spec.ingress[0].ports[0].port"},
		{"another object", `{"yaml":"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: c, image: x}]}"}`, 200, "policies alone"},
		{"no YAML", `{"yaml":"{"}`, 200, "editor:"},
		{"no JSON", `{`, 400, "error"},
		{"a field that is none", `{"yml":""}`, 400, "yml"},
		{"too much", `{"yaml":"` + strings.Repeat("x", 5<<20) + `"}`, 413, "error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, body := p.ask(http.MethodPost, "/api/try", c.body, nil)
			if code != c.code || !strings.Contains(body, c.want) {
				t.Errorf("%d %.600s, want %d with %s", code, body, c.code, c.want)
			}
		})
	}
	var m json.RawMessage
	p.get("/api/matrix", &m)
	if !strings.Contains(string(m), "TCP 5432") {
		t.Error("trying has changed what is shown")
	}
}

func TestFindings(t *testing.T) {
	text := cluster
	p := serve(t, &text).enter()
	var list []analysis.Finding
	p.get("/api/findings", &list)
	for _, f := range list {
		if f.Object.Name == "db" && f.File == "db.yaml" && strings.Contains(f.Field, "ingress[0]") {
			return
		}
	}
	t.Errorf("nobody tells that rule 0 of db matches nothing: %+v", list)
}
