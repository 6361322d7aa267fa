package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/controlplane/apiserver"
)

// TestNoRequestIsDropped ends the server under load, as SIGTERM does: whoever is let in gets an answer, what was acknowledged is stored, and
// watches end as if they had had enough.
func TestNoRequestIsDropped(t *testing.T) {
	t.Parallel()
	s := serve(t, func(c *apiserver.Config) {
		c.Settings.ShutdownDelay = 5 * time.Second // the time for the first look between the failing /readyz and the end
	})
	client := clientOf(t, s.Admin)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var done sync.WaitGroup
	defer done.Wait()
	defer cancel()
	stopped := make(chan struct{})

	// Some clients come by HTTP/2, some by HTTP/1.1, and some by a connection of their own each time.
	var acknowledged sync.Map
	var count atomic.Int64
	for i := range 9 {
		conf := rest.CopyConfig(s.Admin)
		if i%3 > 0 {
			conf.NextProtos = []string{"http/1.1"}
		}
		// Whatever was sent must be answered. The client itself tries again by another connection where it may.
		var sent atomic.Bool
		conf.Wrap(func(rt http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				r = r.Clone(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
					GetConn: func(string) { sent.Store(false) }, WroteHeaders: func() { sent.Store(true) },
				}))
				r.Close = i%3 == 2
				return rt.RoundTrip(r)
			})
		})
		maps := clientOf(t, conf).CoreV1().ConfigMaps(metav1.NamespaceDefault)
		done.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprintf("m-%d-%d", i, n)
				if _, err := maps.Create(ctx, configMap(name), metav1.CreateOptions{}); err != nil {
					if ctx.Err() == nil && (sent.Load() || !isClosed(stopped)) {
						t.Errorf("%s: sent %v, %v", name, sent.Load(), err)
					}
					return
				}
				acknowledged.Store(name, true)
				count.Add(1)
			}
		})
	}
	var watches sync.WaitGroup
	for range 50 {
		watches.Go(func() {
			if err := watchToTheEnd(ctx, client); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "load", func(context.Context) error {
		if n := count.Load(); n < 200 {
			return fmt.Errorf("%d creates", n)
		}
		return nil
	})

	// While it still serves as before, load balancers see that it will end.
	late := make(chan error, 1)
	go func() {
		for {
			_, ready := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
			if ready != nil {
				_, live := client.Discovery().RESTClient().Get().AbsPath("/livez").DoRaw(ctx)
				late <- errors.Join(live, lists(ctx, client))
				return
			}
		}
	}()
	close(stopped)
	s.Stop(t)
	if err := <-late; err != nil {
		t.Errorf("between the failing /readyz and the end: %v", err)
	}
	watches.Wait()
	cancel()
	done.Wait()

	s.Run(t)
	list, err := client.CoreV1().ConfigMaps(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Items {
		acknowledged.Delete(m.Name)
	}
	acknowledged.Range(func(name, _ any) bool {
		t.Errorf("%s was acknowledged, but is not there", name)
		return true
	})
	t.Logf("%d creates acknowledged", count.Load())
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// watchToTheEnd reads a watch as it comes over the wire: a clean end is the end of the body, behind a whole event.
func watchToTheEnd(ctx context.Context, client kubernetes.Interface) error {
	body, err := client.CoreV1().RESTClient().Get().Namespace(metav1.NamespaceDefault).Resource("configmaps").Param("watch", "1").Stream(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	last, buf := byte('\n'), make([]byte, 64<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			last = buf[n-1]
		}
		switch {
		case err == io.EOF && last == '\n':
			return nil
		case err != nil:
			return fmt.Errorf("a watch ended with %w behind %q", err, last)
		}
	}
}
