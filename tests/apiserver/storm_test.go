package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/controlplane/apiserver"
)

// TestWatchStorm opens a thousand watches at a time while objects change, and drops them, again and again: the server serves on, and keeps nothing
// of them.
func TestWatchStorm(t *testing.T) {
	t.Parallel()
	s := serve(t, func(*apiserver.Config) {})
	s.Stop(t)
	p := newProcess(t, s, time.Minute)
	p.start(t)
	p.ready(t)
	maps := p.client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	big := configMap("big")
	big.Data["k"] = strings.Repeat("x", 16<<10)
	if _, err := maps.Create(t.Context(), big, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	storm(t, p, 200) // what is made once only is made
	// The server's own watches come and go with its caches, and with the cycles of the heap.
	before := gauge(t, p.client, `go_goroutines`)
	for range 3 {
		storm(t, p, 1000)
	}
	eventually(t, "the watches are forgotten", func(context.Context) error {
		if n := gauge(t, p.client, `go_goroutines`); n > before+300 {
			return fmt.Errorf("%v goroutines, %v before", n, before)
		}
		return nil
	})
	if heap := gauge(t, p.client, `go_memstats_heap_inuse_bytes`); heap > 500<<20 {
		t.Errorf("%v MiB of heap", heap/(1<<20))
	}
	if err := lists(t.Context(), p.client); err != nil {
		t.Error(err)
	}
}

// storm opens watches, changes an object, and drops them when each has seen the change.
func storm(t *testing.T, p *process, n int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var seen, ended sync.WaitGroup
	for range n {
		seen.Add(1)
		ended.Go(func() {
			told := sync.OnceFunc(seen.Done)
			defer told()
			var body io.ReadCloser
			var err error
			for late := time.After(5 * time.Minute); ; {
				body, err = p.client.CoreV1().RESTClient().Get().Namespace(metav1.NamespaceDefault).Resource("configmaps").Param("watch", "1").Param("fieldSelector", "metadata.name=big").Stream(ctx)
				// A client that is short of processor time may give up a connection that is being made. What the server says counts at once.
				if said := apierrors.APIStatus(nil); err == nil || errors.As(err, &said) {
					break
				}
				select {
				case <-time.After(100 * time.Millisecond):
					continue
				case <-late:
				case <-ctx.Done():
				case <-p.ended:
					err = fmt.Errorf("the server has ended: %w", err)
				}
				break
			}
			if err != nil {
				t.Error(err)
				return
			}
			defer body.Close()
			if _, err := io.CopyN(io.Discard, body, 1); err != nil { // what there is already
				t.Error(err)
				return
			}
			told()
			_, _ = io.Copy(io.Discard, body) // until it is dropped
		})
	}
	seen.Wait()
	if _, err := p.client.CoreV1().ConfigMaps(metav1.NamespaceDefault).Patch(t.Context(), "big", "application/merge-patch+json", []byte(`{"data":{"n":"`+strconv.Itoa(n)+`"}}`), metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
	cancel()
	ended.Wait()
}

// gauge is the value of a metric without labels.
func gauge(t *testing.T, client kubernetes.Interface, name string) float64 {
	t.Helper()
	found := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(metricsOf(t, client))
	if found == nil {
		t.Fatalf("no %s in the metrics", name)
	}
	v, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
