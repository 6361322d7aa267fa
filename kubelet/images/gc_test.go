package images

import (
	"context"
	"slices"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type fake struct {
	cri.RuntimeService
	cri.ImageManagerService
	images     []*runtimeapi.Image
	containers []*runtimeapi.Container
	removed    []string
}

func (f *fake) Close(context.Context) error { return nil }

func (f *fake) ListImages(context.Context, *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	return f.images, nil
}

func (f *fake) ListContainers(context.Context, *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	return f.containers, nil
}

func (f *fake) Status(context.Context, bool) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Info: map[string]string{"config": `{"sandboxImage":"strake.io/pause:1"}`}}, nil
}

func (f *fake) RemoveImage(_ context.Context, spec *runtimeapi.ImageSpec) error {
	f.removed = append(f.removed, spec.Image)
	return nil
}

func TestToFree(t *testing.T) {
	for _, c := range []struct{ capacity, available, want uint64 }{{100, 50, 0}, {100, 16, 0}, {100, 15, 5}, {100, 0, 20}, {0, 0, 0}, {100, 200, 0}, {1000, 149, 51}} {
		if got := toFree(c.capacity, c.available); got != c.want {
			t.Errorf("of %d with %d left: %d, want %d", c.capacity, c.available, got, c.want)
		}
	}
}

func TestUnused(t *testing.T) {
	f := &fake{
		images: []*runtimeapi.Image{
			{Id: "by-id", Size: 1}, {Id: "i2", RepoTags: []string{"by-tag:1"}}, {Id: "i3", RepoDigests: []string{"by-digest@sha256:1"}}, {Id: "pinned", Pinned: true},
			{Id: "i5", RepoTags: []string{"strake.io/pause:1"}}, {Id: "old"}, {Id: "new"},
		},
		containers: []*runtimeapi.Container{{ImageRef: "by-id"}, {Image: &runtimeapi.ImageSpec{Image: "by-tag:1"}}, {ImageRef: "by-digest@sha256:1"}},
	}
	c := New(f, f, nil)
	now := time.Now()
	names := func(at time.Time) (out []string) {
		list, err := c.unused(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range list {
			out = append(out, x.id)
		}
		return out
	}
	all := f.images
	f.images = all[:6]
	if got := names(now); !slices.Equal(got, []string{"old"}) {
		t.Errorf("unused %q", got)
	}
	f.images = all
	if got := names(now.Add(time.Minute)); !slices.Equal(got, []string{"old", "new"}) {
		t.Errorf("unused %q", got)
	}
	f.containers = append(f.containers, &runtimeapi.Container{ImageRef: "old"})
	names(now.Add(2 * time.Minute))
	f.containers = f.containers[:3]
	if got := names(now.Add(3 * time.Minute)); !slices.Equal(got, []string{"new", "old"}) {
		t.Errorf("what was used later goes later: %q", got)
	}
	if err := c.All(t.Context()); err != nil || !slices.Equal(f.removed, []string{"new", "old"}) {
		t.Errorf("removed %q, %v", f.removed, err)
	}
}

func TestChoose(t *testing.T) {
	now := time.Now()
	list := []candidate{{"just-came", 100, now.Add(-time.Minute), time.Time{}}, {"a", 10, now.Add(-time.Hour), time.Time{}}, {"just-used", 10, now.Add(-time.Hour), now.Add(-time.Minute)}, {"b", 10, now.Add(-time.Hour), now.Add(-time.Hour)}, {"c", 10, now.Add(-time.Hour), now.Add(-time.Hour)}}
	var got []string
	for _, x := range choose(list, 15, now) {
		got = append(got, x.id)
	}
	if !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%q", got)
	}
}
