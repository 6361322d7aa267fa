package ui_test

import (
	"net/url"
	"os/exec"
	"strings"
	"testing"
)

// TestInABrowser opens the page in headless Chromium, at a pair: the script runs under the page's own content security policy, and shows
// the rule that decides. `make test-ui` installs the browser.
func TestInABrowser(t *testing.T) {
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("SKIPPED: no chromium here; `make test-ui` installs it")
	}
	text := cluster
	p := serve(t, &text)
	pair := url.Values{"from": {"default/web"}, "to": {"default/db"}}.Encode()
	out, err := exec.CommandContext(t.Context(), browser, "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir="+t.TempDir(),
		"--virtual-time-budget=10000", "--dump-dom", p.url+p.token+"#"+pair).Output()
	if err != nil {
		t.Fatalf("chromium: %v", err)
	}
	dom := string(out)
	for _, want := range []string{
		`aria-label="default/web to default/db: TCP 5432"`, `aria-selected="true"`, "Of 6 pairs", "allowed by default/db spec.ingress[1]",
		`<span class="on">  - from:</span>`, `<span class="on">          app: web</span>`, `(db.yaml:7)`, `id="found">(`,
	} {
		if !strings.Contains(dom, want) {
			t.Errorf("the page has no %s", want)
		}
	}
	if strings.Contains(dom, `<span class="on">          app: nobody</span>`) {
		t.Error("a rule that does not decide is marked")
	}
	if t.Failed() {
		t.Log(dom)
	}
}
