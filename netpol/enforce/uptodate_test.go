package enforce

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

// Who asks while a question is on its way gets the answer to the next one, which all share; who gives up takes it from nobody.
func TestQuestionsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, let, n := newAsked(), make(chan struct{}), 0
		ask := func(context.Context) ([]versions, error) {
			n++ // one at a time
			<-let
			if n == 2 {
				return []versions{{by: map[string]string{"p": "2"}}}, nil
			}
			return nil, errors.New("the first")
		}
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := a.get(t.Context(), "ns", ask); err == nil || err.Error() != "the first" {
				t.Errorf("the first: %v", err)
			}
		})
		synctest.Wait()
		impatient, leave := context.WithCancel(t.Context())
		all.Go(func() {
			if _, err := a.get(impatient, "ns", ask); !errors.Is(err, context.Canceled) {
				t.Errorf("who gave up: %v", err)
			}
		})
		for range 50 {
			all.Go(func() {
				if got, err := a.get(t.Context(), "ns", ask); err != nil || len(got) != 1 || got[0].by["p"] != "2" {
					t.Errorf("%v, %v", got, err)
				}
			})
		}
		if _, err := a.get(t.Context(), "other", func(context.Context) ([]versions, error) { return nil, nil }); err != nil {
			t.Errorf("another namespace: %v", err)
		}
		synctest.Wait()
		leave()
		let <- struct{}{}
		synctest.Wait()
		let <- struct{}{}
		all.Wait()
		if n != 2 || len(a.waiting)+len(a.asking) != 0 {
			t.Errorf("asked %d times for 52; %d and %d are left", n, len(a.waiting), len(a.asking))
		}
	})
}
