package manifests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// maxFile bounds what is read of a file, in bytes.
const maxFile = 256 << 20

// document is one object's text, as JSON.
type document struct {
	file string
	line int // where it begins, from 1
	json []byte
}

// files are the manifests that a path names: itself, or those below a folder but for what is in hidden ones (.git, and the versions that a mounted ConfigMap keeps). A folder without any
// is an error: whoever names it means another, and would take no verdict for a good one.
func files(path string) ([]string, error) {
	if path == "-" {
		return []string{"-"}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	var out []string
	root := path + string(filepath.Separator) // so that a link to a folder is that folder
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if p != root && strings.HasPrefix(d.Name(), ".") {
				return filepath.SkipDir
			}
		case slices.Contains([]string{".yaml", ".yml", ".json"}, strings.ToLower(filepath.Ext(p))):
			out = append(out, p)
		}
		return nil
	})
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("%s: no .yaml, .yml or .json file is in this folder", path)
	}
	return out, err
}

// read reads a file, or the standard input. found: it is one that a folder has, and not named: then it is to be a file, for a pipe might keep it waiting for ever.
func read(path string, stdin io.Reader, found bool) ([]byte, error) {
	if path != "-" {
		if found {
			info, err := os.Stat(path)
			if err != nil {
				return nil, err
			}
			if !info.Mode().IsRegular() {
				return nil, fmt.Errorf("is no file (%s)", info.Mode())
			}
		}
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		stdin = f
	}
	text, err := io.ReadAll(io.LimitReader(stdin, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("longer than %d MiB", maxFile>>20)
	}
	return text, err
}

// split takes a file apart into its documents. What can't be read is a problem; the documents beside it are read.
func split(file string, text []byte) ([]document, []Problem) {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	if trimmed := bytes.TrimSpace(text); len(trimmed) > 0 && trimmed[0] == '{' {
		if docs, err := splitJSON(file, text); err == nil {
			return docs, nil
		} else if strings.EqualFold(filepath.Ext(file), ".json") {
			return docs, []Problem{*err}
		} // else it may be YAML's own notation of a map
	}
	return splitYAML(file, text)
}

func splitJSON(file string, text []byte) ([]document, *Problem) {
	var docs []document
	d := json.NewDecoder(bytes.NewReader(text))
	for {
		at := d.InputOffset()
		at += int64(len(text[at:]) - len(bytes.TrimLeft(text[at:], " \t\r\n")))
		var raw json.RawMessage
		err := d.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			var syntax *json.SyntaxError
			if errors.As(err, &syntax) && syntax.Offset > at {
				at = min(syntax.Offset, int64(len(text)))
			}
			return docs, &Problem{File: file, Line: lineOf(text, at), Reason: "no valid JSON: " + err.Error()}
		}
		docs = append(docs, document{file: file, line: lineOf(text, at), json: raw})
	}
}

func lineOf(text []byte, offset int64) int { return bytes.Count(text[:offset], []byte("\n")) + 1 }

var yamlLine = regexp.MustCompile(`\bline (\d+): `)

func splitYAML(file string, text []byte) ([]document, []Problem) {
	var docs []document
	var problems []Problem
	var lines []string
	first := 1 // line of lines[0]
	end := func(next int) {
		begin := 0
		for begin < len(lines) && blank(lines[begin]) {
			begin++
		}
		if begin == len(lines) {
			lines, first = nil, next
			return
		}
		begun, body := first+begin, strings.Join(lines[begin:], "\n")
		lines, first = nil, next
		j, err := toJSON(body)
		if err != nil {
			line, reason := begun, err.Error()
			for _, words := range []string{"error converting YAML to JSON: ", "yaml: ", "unmarshal errors:\n"} {
				reason = strings.TrimPrefix(reason, words)
			}
			if m := yamlLine.FindStringSubmatch(reason); m != nil {
				n, _ := strconv.Atoi(m[1]) // digits only
				line = begun + n - 1
				reason = strings.Replace(reason, m[0], "", 1) // its lines are those of the document
			}
			problems = append(problems, Problem{File: file, Line: line, Reason: "no valid YAML: " + strings.Join(strings.Fields(reason), " ")})
			return
		}
		if !bytes.Equal(j, []byte("null")) {
			docs = append(docs, document{file: file, line: begun, json: j})
		}
	}
	for i, l := range strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n") {
		marker, rest := l, ""
		if len(l) > 3 {
			marker, rest = l[:3], l[3:]
		}
		if (marker == "---" || marker == "...") && (rest == "" || rest[0] == ' ' || rest[0] == '\t') {
			end(i + 1)
			if marker == "---" {
				lines = append(lines, strings.TrimSpace(rest))
				continue
			}
			first = i + 2
			continue
		}
		lines = append(lines, l)
	}
	end(0)
	return docs, problems
}

func blank(line string) bool {
	l := strings.TrimSpace(line)
	return l == "" || l[0] == '#' || l[0] == '%'
}

// toJSON makes JSON of a YAML document. Duplicate keys are errors. Its parser's own panics are errors too.
func toJSON(body string) (out []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("its parser gave up: %v", r)
		}
	}()
	return yaml.YAMLToJSONStrict([]byte(body))
}
