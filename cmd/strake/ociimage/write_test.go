package ociimage

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// entries reads a tar archive whole.
func entries(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		if found[h.Name], err = io.ReadAll(in); err != nil || int64(len(found[h.Name])) != h.Size {
			t.Fatalf("%s: %d bytes of %d, %v", h.Name, len(found[h.Name]), h.Size, err)
		}
	}
}

// TestWrite follows an archive from its index down to a file, as who loads it does.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("runs"), 0o600); err != nil {
		t.Fatal(err)
	}
	img := Image{Name: "example.org/it:v1", Files: map[string]string{"/bin/it": program, "../other": program}, Entrypoint: []string{"/bin/it"}, Cmd: []string{"-v"}, User: "65532"}
	var first, second bytes.Buffer
	for _, w := range []*bytes.Buffer{&first, &second} {
		if err := Write(w, img); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same files give other bytes the second time")
	}
	archive := entries(t, &first)
	// what checks a blob against who names it, and reads it.
	what := func(d ocispec.Descriptor, into any) []byte {
		t.Helper()
		data := archive[blobPath(d)]
		if int64(len(data)) != d.Size || digest.FromBytes(data) != d.Digest {
			t.Fatalf("%s: %d bytes of digest %s, want %d", d.Digest, len(data), digest.FromBytes(data), d.Size)
		}
		if into != nil {
			if err := json.Unmarshal(data, into); err != nil {
				t.Fatal(err)
			}
		}
		return data
	}
	var index ocispec.Index
	if err := json.Unmarshal(archive["index.json"], &index); err != nil || len(index.Manifests) != 1 || index.Manifests[0].Annotations[containerdImageName] != img.Name {
		t.Fatalf("index %s: %v", archive["index.json"], err)
	}
	var manifest ocispec.Manifest
	what(index.Manifests[0], &manifest)
	var config ocispec.Image
	what(manifest.Config, &config)
	if c := config.Config; c.User != "65532" || len(c.Entrypoint) != 1 || c.Entrypoint[0] != "/bin/it" || len(c.Cmd) != 1 || config.OS != "linux" {
		t.Errorf("config %+v", config)
	}
	if len(manifest.Layers) != 1 || len(config.RootFS.DiffIDs) != 1 || config.RootFS.DiffIDs[0] != manifest.Layers[0].Digest {
		t.Fatalf("layers %+v, of %+v", manifest.Layers, config.RootFS)
	}
	files := entries(t, bytes.NewReader(what(manifest.Layers[0], nil)))
	// No name leads out of the image.
	if len(files) != 2 || string(files["bin/it"]) != "runs" || string(files["other"]) != "runs" {
		t.Errorf("files %q", files)
	}
	if string(archive["oci-layout"]) != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("layout %s", archive["oci-layout"])
	}
}

func TestWriteTellsWhatIsMissing(t *testing.T) {
	err := Write(io.Discard, Image{Name: "example.org/it:v1", Files: map[string]string{"/it": filepath.Join(t.TempDir(), "nowhere")}})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if err := Write(full{}, Image{Name: "example.org/it:v1"}); !errors.Is(err, errFull) {
		t.Errorf("error %v", err)
	}
}

var errFull = errors.New("no room")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }
