package ready

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func TestAPI(t *testing.T) {
	var asked atomic.Int32
	answers := []int{http.StatusForbidden, http.StatusInternalServerError, http.StatusOK}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		w.WriteHeader(answers[min(int(asked.Add(1)), len(answers))-1])
	}))
	defer srv.Close()
	client := kubernetes.NewForConfigOrDie(&rest.Config{Host: srv.URL}).Discovery().RESTClient()
	if err := API(t.Context(), client); err != nil || int(asked.Load()) != len(answers) {
		t.Errorf("%v after %d questions, want none after %d", err, asked.Load(), len(answers))
	}

	answers = []int{http.StatusServiceUnavailable}
	ctx, cancel := context.WithCancel(t.Context())
	asked.Store(0)
	go func() {
		for asked.Load() == 0 {
		}
		cancel()
	}()
	if err := API(ctx, client); !errors.Is(err, context.Canceled) {
		t.Errorf("the wait ended with %v", err)
	}
}
