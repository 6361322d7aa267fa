package podworker

import (
	"bytes"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// readHead reads the beginning of a regular file. It was in the hands of a container, which may have put anything
// into its place: a link is not followed and a pipe not waited for.
func readHead(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, os.ErrInvalid
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// logTail is the text of the last lines of a CRI log, at most limit bytes; empty if there is none.
func logTail(path string, limit int64, lines int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	// Each line begins with a time, a stream and a tag: more is read than is wanted.
	from := max(info.Size()-limit-int64(lines)*64, 0)
	data, err := io.ReadAll(io.NewSectionReader(f, from, info.Size()-from))
	if err != nil {
		return ""
	}
	if from > 0 { // the first line is cut
		_, data, _ = bytes.Cut(data, []byte{'\n'})
	}
	var out []string
	for _, line := range bytes.Split(bytes.TrimSuffix(data, []byte{'\n'}), []byte{'\n'}) {
		text, partial, ok := logText(line)
		if !ok {
			continue
		}
		if !partial {
			text += "\n"
		}
		out = append(out, text)
	}
	text := strings.Join(out, "")
	all := strings.SplitAfter(text, "\n")
	if n := len(all); n > 0 && all[n-1] == "" {
		all = all[:n-1]
	}
	text = strings.Join(all[max(len(all)-lines, 0):], "")
	if over := len(text) - int(limit); over > 0 {
		text = text[over:]
	}
	return strings.ToValidUTF8(text, "")
}

// logText takes a line of a CRI log apart: TIME STREAM TAGS TEXT. partial: the text goes on in the next line.
func logText(line []byte) (text string, partial, ok bool) {
	parts := bytes.SplitN(line, []byte{' '}, 4)
	if len(parts) < 4 || len(parts[0]) == 0 {
		return "", false, false
	}
	if s := string(parts[1]); s != "stdout" && s != "stderr" {
		return "", false, false
	}
	tag, _, _ := bytes.Cut(parts[2], []byte{':'})
	return string(parts[3]), string(tag) == "P", true
}
