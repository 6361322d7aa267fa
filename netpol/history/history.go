// Package history keeps what a node's agent has enforced of network policies, and when: a file with a line of JSON for each change, and for what the
// agent's own proofs found. Each line has the digest of the one before it, so that what is taken out, added or altered later shows, unless all that
// follows was written anew, too.
//
// The file is bounded: when it is full it becomes that of the former time, in place of the one before, and the next begins with the policies that are
// enforced then. It is written beside what it tells of, and holds up nothing: an agent that is killed may leave the last second untold, and what
// changed without it is told when the next one starts.
package history

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/netpol"
)

// What happened.
const (
	Enforced = "enforced" // a policy is enforced as its hash says from then on, or judged in shadow
	Gone     = "gone"     // it is not there any more
	Held     = "held"     // at the beginning of a file: it was enforced already
	Proved   = "proved"   // the kernel's rows were held against the policies and agree; told once an hour
	Drift    = "drift"    // they do not
	Untold   = "untold"   // so many changes could not be written
)

// Entry is a line.
type Entry struct {
	Time   time.Time         `json:"time"`
	What   string            `json:"what"`
	Policy *netpol.PolicyRef `json:"policy,omitempty"`
	// Generation is the API's number of the policy's spec; 0 where it counts none.
	Generation int64  `json:"generation,omitempty"`
	Hash       string `json:"hash,omitempty"`
	Before     string `json:"before,omitempty"` // the hash until then
	// Away: it changed while no agent was looking, at the latest then.
	Away     bool   `json:"away,omitempty"`
	Message  string `json:"message,omitempty"`
	Count    int    `json:"count,omitempty"`    // of Untold: changes; of Proved: questions
	Previous string `json:"previous,omitempty"` // digest of the line before
}

// Bounds of a file, and of what waits to be written.
const (
	maxBytes   = 8 << 20
	maxWaiting = 20000
	maxLine    = 1 << 20
)

// provedEvery is how often it is told that a proof found nothing.
const provedEvery = time.Hour

// state is what a policy's last line says.
type state struct {
	hash       string
	generation int64
}

// Change is a policy that is enforced from now on; with Now nil it is not any more.
type Change struct {
	Kind, Namespace, Name string
	Now                   metav1.Object
}

// Log is the file of a running agent.
type Log struct {
	path  string
	limit int64

	mu      sync.Mutex
	waiting []func(l *Log) []Entry
	untold  int
	wake    chan struct{}

	// Of Run alone.
	file     *os.File
	size     int64
	floor    int64 // the size with which the file began
	previous string
	known    map[netpol.PolicyRef]state
	told     time.Time // when it was told last that a proof found nothing
}

// Open goes on with the file at path, or makes it. What a crash has left of a line goes.
func Open(path string) (*Log, error) { return open(path, maxBytes) }

func open(path string, limit int64) (*Log, error) {
	l := &Log{path: path, limit: limit, wake: make(chan struct{}, 1), known: map[netpol.PolicyRef]state{}}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("history of policies: %w", err)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) { // it was being replaced, or it is the first
		if err := l.learn(former(path)); err != nil {
			return nil, fmt.Errorf("history of policies: %w", err)
		}
		return l, l.begin()
	}
	if err := l.learn(path); err != nil {
		return nil, fmt.Errorf("history of policies: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err == nil {
		err = f.Truncate(l.size)
	}
	if err != nil {
		return nil, fmt.Errorf("history of policies: %w", err)
	}
	l.file = f
	return l, nil
}

func former(path string) string { return path + ".1" }

// learn reads what a file says, and how long it is up to its last whole line.
func (l *Log) learn(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return lines(f, func(line []byte) {
		l.size += int64(len(line)) + 1
		l.previous = netpol.Digest(line)
		var e Entry
		if json.Unmarshal(line, &e) != nil || e.Policy == nil {
			return
		}
		switch e.What {
		case Enforced, Held:
			l.known[*e.Policy] = state{e.Hash, e.Generation}
		case Gone:
			delete(l.known, *e.Policy)
		}
	})
}

// lines calls do with each whole line.
func lines(r io.Reader, do func([]byte)) error {
	b := bufio.NewReaderSize(r, 1<<16)
	for {
		line, err := b.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if len(line) > maxLine {
			line = line[:1] // no line of ours
		}
		do(bytes.TrimSuffix(line, []byte("\n")))
	}
}

// begin makes a file of what is enforced, which the next lines follow.
func (l *Log) begin() error {
	next := l.path + ".new"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("history of policies: %w", err)
	}
	var held []Entry
	for ref, s := range l.known {
		held = append(held, Entry{Time: time.Now().UTC(), What: Held, Policy: &ref, Generation: s.generation, Hash: s.hash})
	}
	slices.SortFunc(held, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Policy.Kind, b.Policy.Kind), cmp.Compare(a.Policy.Namespace, b.Policy.Namespace), cmp.Compare(a.Policy.Name, b.Policy.Name))
	})
	text, previous := l.text(held)
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err == nil && l.file != nil {
		if err = os.Rename(l.path, former(l.path)); errors.Is(err, fs.ErrNotExist) {
			err = nil // the last time only the next rename failed
		}
	}
	if err == nil {
		err = os.Rename(next, l.path)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("history of policies: %w", err)
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.size, l.floor, l.previous = f, int64(len(text)), int64(len(text)), previous
	return nil
}

// text is how entries are written, and the digest of the last line.
func (l *Log) text(list []Entry) ([]byte, string) {
	var out []byte
	previous := l.previous
	for _, e := range list {
		e.Previous = previous
		line, err := json.Marshal(e)
		if err != nil { // there is none: all fields are text and numbers
			continue
		}
		previous = netpol.Digest(line)
		out = append(append(out, line...), '\n')
	}
	return out, previous
}

// All tells, when an agent starts, which policies are enforced.
func (l *Log) All(changes []Change) {
	now := time.Now().UTC()
	l.note(func(l *Log) []Entry {
		had := l.previous != "" // somebody wrote before
		var out []Entry
		there := map[netpol.PolicyRef]bool{}
		for _, c := range changes {
			there[c.ref()] = c.Now != nil
		}
		for ref := range l.known {
			if !there[ref] {
				out = append(out, l.change(now, Change{ref.Kind, ref.Namespace, ref.Name, nil})...)
			}
		}
		for _, c := range changes {
			out = append(out, l.change(now, c)...)
		}
		for i := range out {
			out[i].Away = had
		}
		return out
	})
}

// Changed tells what is enforced from now on.
func (l *Log) Changed(changes []Change) {
	if len(changes) == 0 {
		return
	}
	now := time.Now().UTC()
	l.note(func(l *Log) (out []Entry) {
		for _, c := range changes {
			out = append(out, l.change(now, c)...)
		}
		return out
	})
}

func (c Change) ref() netpol.PolicyRef {
	return netpol.PolicyRef{Kind: c.Kind, Namespace: c.Namespace, Name: c.Name}
}

// change is the line of a change, none if it changes nothing.
func (l *Log) change(now time.Time, c Change) []Entry {
	ref := c.ref()
	was, had := l.known[ref]
	e := Entry{Time: now, What: Gone, Policy: &ref, Before: was.hash}
	if c.Now == nil {
		if !had {
			return nil
		}
		delete(l.known, ref)
		return []Entry{e}
	}
	is := state{netpol.Hash(c.Now), c.Now.GetGeneration()}
	if had && is.hash == was.hash {
		return nil
	}
	l.known[ref] = is
	e.What, e.Hash, e.Generation = Enforced, is.hash, is.generation
	return []Entry{e}
}

// Proof tells what a proof found: no differences, or what they are.
func (l *Log) Proof(questions, differences int, first string) {
	now := time.Now().UTC()
	l.note(func(l *Log) []Entry {
		if differences > 0 {
			l.told = time.Time{}
			return []Entry{{Time: now, What: Drift, Count: differences, Message: first}}
		}
		if now.Sub(l.told) < provedEvery {
			return nil
		}
		l.told = now
		return []Entry{{Time: now, What: Proved, Count: questions}}
	})
}

func (l *Log) note(f func(*Log) []Entry) {
	l.mu.Lock()
	if len(l.waiting) < maxWaiting {
		l.waiting = append(l.waiting, f)
	} else {
		l.untold++
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends.
func (l *Log) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			l.flush()
			if l.file != nil {
				l.file.Close()
			}
			return
		case <-l.wake:
			l.flush()
		}
	}
}

// flush writes what waits. What can't be written is counted, and told with what can.
func (l *Log) flush() {
	l.mu.Lock()
	waiting, untold := l.waiting, l.untold
	l.waiting, l.untold = nil, 0
	l.mu.Unlock()
	var list []Entry
	for _, f := range waiting {
		list = append(list, f(l)...)
	}
	if untold > 0 {
		list = append(list, Entry{Time: time.Now().UTC(), What: Untold, Count: untold})
	}
	if len(list) == 0 {
		return
	}
	if err := l.write(list); err != nil {
		klog.ErrorS(err, "Changes of network policies are enforced, but not noted", "changes", len(list))
		l.mu.Lock()
		l.untold += len(list)
		l.mu.Unlock()
	}
}

func (l *Log) write(list []Entry) error {
	if l.size > l.limit && l.size > 2*l.floor {
		if err := l.begin(); err != nil {
			return err
		}
	}
	text, previous := l.text(list)
	n, err := l.file.Write(text)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		if n > 0 {
			err = errors.Join(err, l.file.Truncate(l.size))
		}
		return err
	}
	l.size, l.previous = l.size+int64(n), previous
	return nil
}

// Read gives the lines of the file at path and of the one before it, oldest first, and where they don't follow from one another. It is of no matter whether an
// agent writes it meanwhile.
func Read(path string) (list []Entry, broken []string, err error) {
	files, err := openBoth(path)
	for _, f := range files {
		defer f.Close()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("history of policies: %w", err)
	}
	previous, first := "", true
	for _, f := range files {
		name := f.Name()
		n := 0
		err = lines(f, func(line []byte) {
			n++
			var e Entry
			switch err := json.Unmarshal(line, &e); {
			case err != nil:
				broken = append(broken, fmt.Sprintf("%s:%d is no line of a history", name, n))
			case !first && e.Previous != previous:
				broken = append(broken, fmt.Sprintf("%s:%d does not follow from the line before it", name, n))
				fallthrough
			default:
				list = append(list, e)
			}
			previous, first = netpol.Digest(line), false
		})
		if err != nil {
			return nil, nil, fmt.Errorf("history of policies: %s: %w", name, err)
		}
	}
	return list, broken, nil
}

// openBoth opens the former file and that at path, as far as they are there, so that the latter follows the former whatever an agent renames meanwhile.
func openBoth(path string) (files []*os.File, err error) {
	for {
		var before os.FileInfo
		for _, name := range []string{former(path), path} {
			f, err := os.Open(name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return files, err
			}
			files = append(files, f)
			if name == path {
				continue
			}
			if before, err = f.Stat(); err != nil {
				return files, err
			}
		}
		now, err := os.Stat(former(path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return files, err
		}
		if before == nil && now == nil || before != nil && now != nil && os.SameFile(before, now) {
			return files, nil
		}
		for _, f := range files {
			f.Close()
		}
		files = nil
	}
}
