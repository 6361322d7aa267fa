package flows

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
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Options say what is read.
type Options struct {
	Since  time.Time // lines before are left out; zero: none
	Counts bool      // the counts, else flows
	// CaughtUp is called by Follow each time that it has given all that there is; its error ends it. It may be nil.
	CaughtUp func() error
}

func (o Options) sort() string {
	if o.Counts {
		return sortCounts
	}
	return sortFlows
}

// maxLine is longer than any line of ours: labels are what is long in them.
const maxLine = 1 << 20

// Read gives the lines that the records in some folders have, in the order of time. A line that can't be read is left out: the numbers tell. do's error
// ends it.
func Read(dirs []string, o Options, do func(Line) error) error {
	t, err := newTail(dirs, o)
	if err != nil {
		return err
	}
	defer t.close()
	return t.more(do)
}

// Follow is Read, and goes on with what is written until ctx ends.
func Follow(ctx context.Context, dirs []string, o Options, do func(Line) error) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("record of flows: %w", err)
	}
	defer w.Close()
	for _, dir := range dirs {
		if err := w.Add(dir); err != nil {
			return fmt.Errorf("record of flows: watch %s: %w", dir, err)
		}
	}
	t, err := newTail(dirs, o)
	if err != nil {
		return err
	}
	defer t.close()
	for {
		if err := t.more(do); err != nil {
			return err
		}
		if o.CaughtUp != nil {
			if err := o.CaughtUp(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.Errors:
			if !errors.Is(err, fsnotify.ErrEventOverflow) { // then there is more to read, too
				return fmt.Errorf("record of flows: %w", err)
			}
		case <-w.Events:
		}
	}
}

// tail reads on where it stopped.
type tail struct {
	Options
	at []place
}

// place is how far a folder is read.
type place struct {
	dir   string
	first uint64 // of the file
	file  *os.File
}

func newTail(dirs []string, o Options) (*tail, error) {
	t := &tail{Options: o}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			return nil, fmt.Errorf("record of flows: %w", err)
		}
		t.at = append(t.at, place{dir: dir})
	}
	return t, nil
}

func (t *tail) close() {
	for _, p := range t.at {
		if p.file != nil {
			p.file.Close()
		}
	}
}

// atOnce bounds what is held of the folders' lines while they are put in order.
const atOnce = 10000

// more gives all lines that there are now. Those of different folders are in order as far as they are written by now.
func (t *tail) more(do func(Line) error) error {
	for {
		var batch []Line
		full := false
		for i := range t.at {
			n, err := t.at[i].read(t.Options, func(l Line) { batch = append(batch, l) })
			if err != nil {
				return err
			}
			full = full || n >= atOnce
		}
		slices.SortStableFunc(batch, func(a, b Line) int { return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Node, b.Node)) })
		for _, l := range batch {
			if err := do(l); err != nil {
				return err
			}
		}
		if !full {
			return nil
		}
	}
}

// read gives the next lines, some atOnce of them.
func (p *place) read(o Options, do func(Line)) (lines int, err error) {
	list, err := segmentsOf(p.dir, o.sort())
	if err != nil {
		return 0, err
	}
	if p.file != nil { // it may be gone by now, and is still to be read to its end
		n, err := p.rest(o, do)
		if err != nil || n >= atOnce {
			return n, err
		}
		lines += n
	}
	for _, s := range list {
		if p.file != nil && s.first <= p.first || s.at.Before(o.Since) {
			continue
		}
		f, err := os.Open(s.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was the oldest
		}
		if err != nil {
			return lines, fmt.Errorf("record of flows: %w", err)
		}
		if p.file != nil {
			p.file.Close()
		}
		p.file, p.first = f, s.first
		n, err := p.rest(o, do)
		if lines += n; err != nil || lines >= atOnce {
			return lines, err
		}
	}
	return lines, nil
}

// rest gives the next lines of the file.
func (p *place) rest(o Options, do func(Line)) (lines int, err error) {
	b := bufio.NewReaderSize(p.file, 1<<16)
	read := int64(0)
	start, err := p.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, fmt.Errorf("record of flows: %w", err)
	}
	for lines < atOnce {
		text, err := b.ReadBytes('\n')
		if err == io.EOF {
			break // what is left is no whole line yet: it is read again
		}
		if err != nil {
			return lines, fmt.Errorf("record of flows: %w", err)
		}
		read += int64(len(text))
		lines++
		if l, ok := parse(bytes.TrimSuffix(text, []byte("\n"))); ok && !l.Time.Before(o.Since) {
			do(l)
		}
	}
	if _, err := p.file.Seek(start+read, io.SeekStart); err != nil {
		return lines, fmt.Errorf("record of flows: %w", err)
	}
	return lines, nil
}

// parse reads a line, with the parts of its kind and no others; it is false for what is none of ours, such as what a disk that was full has left.
func parse(text []byte) (Line, bool) {
	var l Line
	if len(text) > maxLine || json.Unmarshal(text, &l) != nil {
		return Line{}, false
	}
	switch l.Kind {
	case KindFlow:
		l.Count, l.Loss = nil, nil
		return l, l.Flow != nil && l.Sample != nil
	case KindCount:
		l.Sample, l.Loss = nil, nil
		return l, l.Flow != nil && l.Count != nil
	case KindLoss:
		l.Flow, l.Sample, l.Count = nil, nil, nil
		return l, l.Loss != nil
	case KindStart:
		l.Flow, l.Sample, l.Count, l.Loss = nil, nil, nil, nil
		return l, true
	}
	return Line{}, false
}
