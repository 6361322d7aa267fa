package bundle

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Section is one file of a bundle.
type Section struct {
	Name    string // path in the archive
	Collect func(context.Context) ([]byte, error)
}

// Entry tells of a section that was written.
type Entry struct {
	Name  string `json:"name"`
	Bytes int    `json:"bytes"`
	Error string `json:"error,omitempty"` // why there is nothing, or not all
}

// sectionTime bounds one section: a server that hangs must not keep the rest out.
const sectionTime = 30 * time.Second

// Write makes an archive at path, readable by its owner alone; a file that is there is not overwritten. A section that fails leaves a
// note in its place.
func Write(ctx context.Context, path string, sections []Section) (entries []Entry, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("%s is there already: name another file with -f", path)
	}
	if err != nil {
		return nil, fmt.Errorf("support bundle: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			err = fmt.Errorf("support bundle %s: %w", path, errors.Join(err, os.Remove(path)))
		}
	}()
	gz := gzip.NewWriter(f)
	tw := tar.NewWriter(gz)
	now := time.Now()
	put := func(name string, data []byte) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o600, ModTime: now, Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err := tw.Write(data)
		return err
	}
	for _, s := range sections {
		if err := ctx.Err(); err != nil {
			return entries, err
		}
		data, cerr := collect(ctx, s)
		e := Entry{Name: s.Name}
		if cerr != nil {
			e.Error = Text(cerr.Error())
			if len(data) == 0 {
				e.Name, data = s.Name+".error", []byte(e.Error+"\n")
			}
		}
		e.Bytes = len(data)
		if err := put(e.Name, data); err != nil {
			return entries, err
		}
		entries = append(entries, e)
	}
	list, err := json.MarshalIndent(entries, "", "  ")
	if err == nil {
		err = put("contents.json", list)
	}
	if err == nil {
		err = tw.Close()
	}
	if err == nil {
		err = gz.Close()
	}
	return entries, err
}

// collect runs one section; one that hangs is left behind.
func collect(ctx context.Context, s Section) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, sectionTime)
	defer cancel()
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := s.Collect(ctx)
		done <- result{data, err}
	}()
	select {
	case r := <-done:
		return r.data, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("it took longer than %s: %w", sectionTime, ctx.Err())
	}
}

// Print shows what is in a bundle.
func Print(w io.Writer, path string, entries []Entry) {
	fmt.Fprintf(w, "%s\n", path)
	for _, e := range entries {
		fmt.Fprintf(w, "  %-34s %9d bytes", e.Name, e.Bytes)
		if e.Error != "" {
			fmt.Fprintf(w, "  ! %s", firstLine(e.Error))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w, "No Secrets, data of ConfigMaps, keys or tokens are in it; look it over before you give it away: names and addresses are.")
}

func firstLine(s string) string {
	for i, r := range s {
		if r == '\n' {
			return s[:i]
		}
	}
	return s
}

// maxLog is how much of the end of a log is taken.
const maxLog = 2 << 20

// logTail is the end of a log, without what looks like a secret. It begins with a whole line.
func logTail(path string, size int64) ([]byte, error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	cut := info.Size() - size
	if cut > 0 {
		if _, err := f.Seek(cut, io.SeekStart); err != nil {
			return nil, err
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, size))
	if err != nil {
		return nil, err
	}
	if cut > 0 {
		for i, b := range data {
			if b == '\n' {
				data = append([]byte(fmt.Sprintf("[%d bytes before this are left out]\n", cut+int64(i)+1)), data[i+1:]...)
				break
			}
		}
	}
	return []byte(Text(string(data))), nil
}
