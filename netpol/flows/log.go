package flows

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Sorts of files.
const (
	sortFlows  = "flows"
	sortCounts = "counts"
)

const suffix = ".jsonl"

// segments is in how many files a sort's room is divided: so much of it goes at a time.
const segments = 8

// journal writes the files of one sort. Its lines wait in memory until flush.
type journal struct {
	dir, sort string
	room      int64
	age       time.Duration

	file    *os.File
	size    int64 // of file
	seq     uint64
	waiting bytes.Buffer
	onDisk  []func() // to be called when what waits is written
	oldest  uint64   // number of the first line that there is, as prune left it
}

// segment is a file of a sort.
type segment struct {
	path  string
	first uint64 // number of its first line
	size  int64
	at    time.Time // when it was written last
}

// openJournal goes on behind the last whole line that there is.
func openJournal(dir, sort string, room int64, age time.Duration) (*journal, error) {
	j := &journal{dir: dir, sort: sort, room: room, age: age, seq: 1}
	list, err := segmentsOf(dir, sort)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return j, nil
	}
	last := list[len(list)-1]
	whole, lines, err := wholeLines(last.path)
	if err != nil {
		return nil, err
	}
	if whole < last.size { // who wrote it was killed
		if err := os.Truncate(last.path, whole); err != nil {
			return nil, fmt.Errorf("record of flows: %w", err)
		}
	}
	j.seq = last.first + lines
	if j.file, err = os.OpenFile(last.path, os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, fmt.Errorf("record of flows: %w", err)
	}
	j.size = whole
	return j, nil
}

// segmentsOf are the files of a sort, the oldest first.
func segmentsOf(dir, sort string) ([]segment, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("record of flows: %w", err)
	}
	var out []segment
	for _, e := range entries {
		first, ok := firstOf(e.Name(), sort)
		info, err := e.Info()
		if !ok || err != nil || !info.Mode().IsRegular() { // not ours, or just gone
			continue
		}
		out = append(out, segment{filepath.Join(dir, e.Name()), first, info.Size(), info.ModTime()})
	}
	slices.SortFunc(out, func(a, b segment) int { return cmp.Compare(a.first, b.first) })
	return out, nil
}

// firstOf reads a file's name.
func firstOf(name, sort string) (uint64, bool) {
	text, ok := strings.CutPrefix(name, sort+"-")
	text, ours := strings.CutSuffix(text, suffix)
	n, err := strconv.ParseUint(text, 10, 64)
	return n, ok && ours && err == nil
}

// wholeLines tells where the last whole line of a file ends, and how many there are.
func wholeLines(path string) (end int64, lines uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, fmt.Errorf("record of flows: %w", err)
	}
	defer f.Close()
	var at int64
	b := make([]byte, 1<<16)
	for {
		n, err := f.Read(b)
		if i := bytes.LastIndexByte(b[:n], '\n'); i >= 0 {
			end = at + int64(i) + 1
			lines += uint64(bytes.Count(b[:n], []byte("\n")))
		}
		at += int64(n)
		if err == io.EOF {
			return end, lines, nil
		}
		if err != nil {
			return 0, 0, fmt.Errorf("record of flows: %w", err)
		}
	}
}

// add takes a line, with the next number; onDisk is called when it is written, unless it is nil.
func (j *journal) add(l Line, onDisk func()) error {
	l.Seq = j.seq
	text, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("record of flows: %w", err)
	}
	if int64(j.waiting.Len()+len(text)) >= min(1<<20, j.room/segments) { // what is written at once is in one file
		err = j.flush()
	}
	j.seq++
	j.waiting.Write(text)
	j.waiting.WriteByte('\n')
	if onDisk != nil {
		j.onDisk = append(j.onDisk, onDisk)
	}
	return err
}

// flush writes what waits. Where that fails it is gone, and the numbers tell.
func (j *journal) flush() error {
	if j.waiting.Len() == 0 {
		return nil
	}
	defer func() {
		j.waiting.Reset()
		j.onDisk = nil
	}()
	if j.file == nil || j.size+int64(j.waiting.Len()) > j.room/segments {
		if err := j.next(); err != nil {
			return err
		}
	}
	n, err := j.file.Write(j.waiting.Bytes())
	j.size += int64(n)
	if err != nil { // half a line may be there: what follows is to begin anew
		err = errors.Join(err, j.file.Truncate(j.size-int64(n)), j.file.Close())
		j.file = nil
		return fmt.Errorf("record of flows: %w", err)
	}
	for _, do := range j.onDisk {
		do()
	}
	return nil
}

// next begins a file, for the lines that wait, and makes room for it.
func (j *journal) next() error {
	if j.file != nil {
		err := j.file.Close()
		j.file = nil // whether or not: the next try is to be with another one
		if err != nil {
			return fmt.Errorf("record of flows: %w", err)
		}
	}
	if err := j.prune(j.room - j.room/segments); err != nil {
		return err
	}
	first := j.seq - uint64(bytes.Count(j.waiting.Bytes(), []byte("\n")))
	path := filepath.Join(j.dir, fmt.Sprintf("%s-%020d%s", j.sort, first, suffix))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("record of flows: %w", err)
	}
	j.file, j.size = f, 0
	return nil
}

// prune removes the oldest files until the rest has no more than so many bytes, and those that are too old.
func (j *journal) prune(room int64) error {
	list, err := segmentsOf(j.dir, j.sort)
	if err != nil {
		return err
	}
	var size int64
	left := j.seq - uint64(bytes.Count(j.waiting.Bytes(), []byte("\n"))) // nothing but what waits
	for i := len(list) - 1; i >= 0; i-- {
		size += list[i].size
		current := i == len(list)-1 && j.file != nil
		if old := time.Since(list[i].at) > j.age; (size > room || old) && !current {
			if err := os.Remove(list[i].path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("record of flows: %w", err)
			}
		} else {
			left = list[i].first
		}
	}
	j.oldest = left
	return nil
}

func (j *journal) close() error {
	err := j.flush()
	if j.file != nil {
		err = errors.Join(err, j.file.Close())
	}
	return err
}
