package arrows

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

var (
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	testName = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`)
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	noSlug   = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// What the docs point at is there: files, headings, and the tests that show what they claim.
func TestDocsPointAtWhatIsThere(t *testing.T) {
	docs, tests := map[string]string{}, map[string]bool{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another test's, gone meanwhile
		}
		if err != nil || e.IsDir() {
			if err == nil && path != root && (strings.HasPrefix(e.Name(), ".") || e.Name() == "bin") {
				return fs.SkipDir // git's and the tools' own
			}
			return err
		}
		isTest := strings.HasSuffix(path, "_test.go")
		if !isTest && filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !isTest {
			docs[path] = string(text)
		}
		for _, m := range testFunc.FindAllSubmatch(text, -1) {
			tests[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(docs) < 5 || len(tests) < 100 {
		t.Fatalf("%d docs and %d tests were found", len(docs), len(tests))
	}
	for doc, text := range docs {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			file, heading, _ := strings.Cut(m[1], "#")
			if strings.Contains(file, "://") {
				continue
			}
			at := doc
			if file != "" {
				at = filepath.Join(filepath.Dir(doc), file)
			}
			if _, err := os.Stat(at); err != nil {
				t.Errorf("%s: the link %s leads nowhere", doc, m[1])
			} else if heading != "" && !headings(docs[at])[heading] {
				t.Errorf("%s: the link %s leads to no heading", doc, m[1])
			}
		}
		for _, name := range testName.FindAllString(text, -1) {
			if !tests[name] {
				t.Errorf("%s: there is no test %s", doc, name)
			}
		}
	}
}

// headings are the anchors of a Markdown text, as forges make them.
func headings(text string) map[string]bool {
	out := map[string]bool{}
	for line := range strings.SplitSeq(text, "\n") {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			out[strings.ReplaceAll(noSlug.ReplaceAllString(strings.ToLower(title), ""), " ", "-")] = true
		}
	}
	return out
}
