// Package ociimage writes container images out of plain files, without a
// registry or a builder: the demo's and the pod sandbox's images are made of
// the very binaries that run the cluster.
package ociimage

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// containerdImageName is the index annotation from which containerd takes an image's full name.
const containerdImageName = "io.containerd.image.name"

// Image is an image of one layer.
type Image struct {
	Name       string            // full reference, such as strake.io/demo:v1
	Files      map[string]string // path in the image, from its root → file on this machine; all executable
	Entrypoint []string
	Cmd        []string
	User       string // numeric, such as "65532"; empty is root
}

// Write writes the image as an archive in OCI image layout (image-spec 1.1). The same files give the
// same bytes: owners, modes and times are fixed.
func Write(w io.Writer, img Image) error {
	sum := sha256.New()
	size := &counter{w: sum}
	if err := img.writeLayer(size); err != nil {
		return fmt.Errorf("image %s: %w", img.Name, err)
	}
	layer := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer,
		Digest:    digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum.Sum(nil))),
		Size:      size.n,
	}
	config, configDesc, err := blob(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   ocispec.ImageConfig{Entrypoint: img.Entrypoint, Cmd: img.Cmd, User: img.User},
		// An uncompressed layer's digest is its diff id as well.
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	})
	if err != nil {
		return fmt.Errorf("image %s: %w", img.Name, err)
	}
	manifest, manifestDesc, err := blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: configDesc, Layers: []ocispec.Descriptor{layer},
	})
	if err != nil {
		return fmt.Errorf("image %s: %w", img.Name, err)
	}
	manifestDesc.Annotations = map[string]string{containerdImageName: img.Name}
	index, _, err := blob(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifestDesc},
	})
	if err != nil {
		return fmt.Errorf("image %s: %w", img.Name, err)
	}
	mark, _, err := blob("", ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return fmt.Errorf("image %s: %w", img.Name, err)
	}

	tw := tar.NewWriter(w)
	for _, f := range []struct {
		name string
		data []byte
	}{
		{ocispec.ImageLayoutFile, mark}, {ocispec.ImageIndexFile, index},
		{blobPath(manifestDesc), manifest}, {blobPath(configDesc), config},
	} {
		err = addHeader(tw, f.name, int64(len(f.data)), 0o644)
		if err == nil {
			_, err = tw.Write(f.data)
		}
		if err != nil {
			return fmt.Errorf("image %s: %w", img.Name, err)
		}
	}
	err = addHeader(tw, blobPath(layer), layer.Size, 0o644)
	if err == nil {
		err = img.writeLayer(tw)
	}
	if err == nil {
		err = tw.Close()
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", img.Name, err)
	}
	return nil
}

// writeLayer writes the layer's tar; it runs twice, for the digest and for the archive.
func (img Image) writeLayer(w io.Writer) error {
	tw := tar.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(img.Files)) {
		f, err := os.Open(img.Files[name])
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err == nil {
			err = addHeader(tw, path.Clean("/" + name)[1:], info.Size(), 0o755)
		}
		if err == nil {
			_, err = io.Copy(tw, f)
		}
		f.Close()
		if err != nil {
			return fmt.Errorf("file %s: %w", img.Files[name], err)
		}
	}
	return tw.Close()
}

func addHeader(tw *tar.Writer, name string, size, mode int64) error {
	return tw.WriteHeader(&tar.Header{Name: name, Size: size, Mode: mode, Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

func blob(mediaType string, v any) ([]byte, ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	return data, ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}, err
}

func blobPath(d ocispec.Descriptor) string {
	return path.Join(ocispec.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded())
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
