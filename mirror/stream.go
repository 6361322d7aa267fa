package mirror

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// stream lists a kind in one answer, whose objects are read while the server sends the ones after them. So neither the answer is here as a whole nor any
// object but the one that is being read.
type stream struct {
	client   rest.Interface
	resource string
	paged    bool // the last answer was cut: API servers end one after a minute (--request-timeout), so the next list comes in pages, with a minute each
}

// cutPage is how many objects are asked for at once after an answer was cut: as many as client-go asks for.
const cutPage = 500

// streaming is a reflector that lists so.
func streaming[T any](what runtime.Object, store cache.ReflectorStore, watching cache.WatchFuncWithContext, from *stream, hold func(object []byte) (T, error)) *cache.Reflector {
	l := &listed{}
	l.WatchFuncWithContext = watching
	l.ListWithContextFunc = func(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
		all := &heldList[T]{}
		var err error
		all.ResourceVersion, err = from.list(ctx, func(object []byte) error {
			h, err := hold(object)
			all.Items = append(all.Items, &Held[T]{h})
			return err
		})
		return all, err
	}
	return cache.NewReflectorWithOptions(l, what, store, cache.ReflectorOptions{})
}

// list calls do with each object, of the newest resourceVersion, which it returns. do must not keep the bytes.
func (s *stream) list(ctx context.Context, do func(object []byte) error) (version string, err error) {
	var meta metav1.ListMeta
	for first := true; first || meta.Continue != ""; first = false {
		if meta, err = s.answer(ctx, meta.Continue, do); err != nil {
			return "", fmt.Errorf("list of %s: %w", s.resource, err)
		}
	}
	s.paged = false
	return meta.ResourceVersion, nil
}

// answer is list of what one answer holds: all, or a page that begins where another says that it goes on.
func (s *stream) answer(ctx context.Context, from string, do func(object []byte) error) (metav1.ListMeta, error) {
	get := s.client.Get().Resource(s.resource).SetHeader("Accept", runtime.ContentTypeProtobuf)
	if s.paged {
		get.Param("limit", strconv.Itoa(cutPage))
	}
	if from != "" {
		get.Param("continue", from)
	}
	body, err := get.Stream(ctx)
	if err != nil {
		s.paged = s.paged || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err)
		return metav1.ListMeta{}, err
	}
	defer body.Close()
	var refused error
	r := listReader{Reader: bufio.NewReaderSize(body, 64<<10), do: func(object []byte) error {
		refused = do(object)
		return refused
	}}
	err = r.read()
	s.paged = s.paged || err != nil && refused == nil
	return r.meta, err
}

// listReader reads a list as the API has it in protobuf: four bytes, a runtime.Unknown, and in that the list.
type listReader struct {
	*bufio.Reader
	do   func(object []byte) error
	meta metav1.ListMeta
	buf  bytes.Buffer // of one field
}

var magic = []byte("k8s\x00")

func (r *listReader) read() error {
	begin, err := r.value(uint64(len(magic)))
	if err != nil {
		return err
	}
	if !bytes.Equal(begin, magic) {
		return fmt.Errorf("the answer begins with %q, not as %s does", begin, runtime.ContentTypeProtobuf)
	}
	for listed := false; ; {
		number, size, err := r.head()
		switch {
		case err == io.EOF && listed:
			return nil
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		case number == 2: // raw
			listed, err = true, r.list(size)
		default: // what kind of list it is, and how raw is encoded: as asked for
			_, err = r.value(size)
		}
		if err != nil {
			return err
		}
	}
}

// list reads the list itself.
func (r *listReader) list(size uint64) error {
	if size > math.MaxInt64 {
		return errWire
	}
	outer := r.Reader
	defer func() { r.Reader = outer }()
	within := &io.LimitedReader{R: outer, N: int64(size)}
	r.Reader = bufio.NewReaderSize(within, 64<<10)
	for {
		number, size, err := r.head()
		if err == io.EOF && within.N > 0 {
			return io.ErrUnexpectedEOF
		}
		if err == io.EOF {
			return nil
		}
		var value []byte
		if err == nil {
			value, err = r.value(size)
		}
		if err == nil {
			switch number {
			case 1:
				err = r.meta.Unmarshal(value)
			case 2:
				err = r.do(value)
			}
		}
		if err != nil {
			return err
		}
	}
}

// head reads the number and the size of a field, which has one; io.EOF: there is none.
func (r *listReader) head() (number, size uint64, err error) {
	tag, err := binary.ReadUvarint(r)
	if err != nil {
		return 0, 0, err
	}
	if tag&7 != lengthDelimited {
		return 0, 0, errWire
	}
	if size, err = binary.ReadUvarint(r); err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return tag >> 3, size, err
}

// value reads the bytes of a field, which the next call overwrites.
func (r *listReader) value(size uint64) ([]byte, error) {
	if size > math.MaxInt64 {
		return nil, errWire
	}
	r.buf.Reset()
	_, err := io.CopyN(&r.buf, r, int64(size)) // grows as bytes come, not as it was told
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return r.buf.Bytes(), err
}
