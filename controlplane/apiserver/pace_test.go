package apiserver

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// sends is a ResponseWriter that tells what it has been given between one flush and the next.
type sends struct {
	*httptest.ResponseRecorder
	sent chan string
}

func (s *sends) Flush() {
	s.sent <- s.Body.String()
	s.Body.Reset()
}

// watchWith has a handler of a watch write, paced.
func watchWith(p *pace, verb string, handler http.HandlerFunc) *sends {
	return watchOf(p, &request.RequestInfo{Verb: verb}, handler)
}

func watchOf(p *pace, info *request.RequestInfo, handler http.HandlerFunc) *sends {
	s := &sends{httptest.NewRecorder(), make(chan string, 10)}
	ctx := request.WithRequestInfo(context.Background(), info)
	p.handler(handler).ServeHTTP(s, httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx))
	return s
}

func write(w http.ResponseWriter, text string) {
	w.Write([]byte(text))
	w.(http.Flusher).Flush()
}

func TestPaceSendsAtOnceBelowTheRate(t *testing.T) {
	s := watchWith(&pace{cost: time.Hour, room: 10 * time.Hour, since: time.Now().Add(-10 * time.Hour)}, "watch", func(w http.ResponseWriter, _ *http.Request) {
		for _, text := range []string{"", "a", "b"} {
			write(w, text)
		}
	})
	for _, want := range []string{"", "a", "b"} {
		select {
		case got := <-s.sent:
			if got != want {
				t.Errorf("sent %q, want %q", got, want)
			}
		default:
			t.Fatalf("%q is not sent", want)
		}
	}
}

func TestPaceSendsTogetherWhatWaits(t *testing.T) {
	p := &pace{cost: 100 * time.Millisecond, since: time.Now()}
	p.next.Store(int64(time.Hour))
	s := watchWith(p, "watch", func(w http.ResponseWriter, _ *http.Request) {
		write(w, "") // the header goes at once, though its turn is not yet there
		p.next.Store(int64(time.Since(p.since) + 300*time.Millisecond))
		write(w, "a")
		write(w, "b")
		inner := w.(interface{ Unwrap() http.ResponseWriter }).Unwrap().(*sends)
		if header, both := <-inner.sent, <-inner.sent; header != "" || both != "ab" {
			t.Errorf("sent %q and %q, want nothing and %q", header, both, "ab")
		}
		p.next.Store(int64(time.Hour))
		write(w, "c")
	})
	if s.Body.String() != "c" || len(s.sent) > 0 {
		t.Errorf("%q is left and %d were sent, want that the end leaves to the server what waits", s.Body, len(s.sent))
	}
	if turn := p.turn(); turn < time.Minute {
		t.Errorf("the next turn is in %s, want one behind those that wait", turn)
	}
}

func TestPaceLeavesOthersAlone(t *testing.T) {
	watchWith(&pace{cost: time.Hour, since: time.Now()}, "get", func(w http.ResponseWriter, _ *http.Request) {
		if _, ok := w.(*sends); !ok {
			t.Errorf("a get has a %T", w)
		}
	})
}

// Who watches all of a stored resource, or all of a namespace, is counted while the watch lasts. Of what is not stored nothing is kept.
func TestPaceCountsWatchers(t *testing.T) {
	p, pods := newPace(), schema.GroupResource{Resource: "pods"}
	p.crowds.hold(pods)
	for what, test := range map[string]struct {
		info request.RequestInfo
		want int // of an event in n
	}{
		"all":            {request.RequestInfo{Resource: "pods"}, 1},
		"its namespace":  {request.RequestInfo{Resource: "pods", Namespace: "n"}, 1},
		"another one":    {request.RequestInfo{Resource: "pods", Namespace: "other"}, 0},
		"one object":     {request.RequestInfo{Resource: "pods", Name: "p"}, 0},
		"selected":       {request.RequestInfo{Resource: "pods", FieldSelector: "spec.nodeName=n"}, 0},
		"a made-up name": {request.RequestInfo{APIGroup: "none.example", Resource: "such"}, 0},
	} {
		test.info.Verb = "watch"
		watchOf(p, &test.info, func(http.ResponseWriter, *http.Request) {
			if got := p.crowds.crowd(pods).of("n"); got != test.want {
				t.Errorf("%s: %d watchers of Pods, want %d", what, got, test.want)
			}
		})
	}
	p.crowds.of.Range(func(r, left any) bool {
		if crowd := left.(*crowd); r != pods || crowd.of("n") != 0 || len(crowd.in) > 0 {
			t.Errorf("%v is left of %v", left, r)
		}
		return true
	})
}
