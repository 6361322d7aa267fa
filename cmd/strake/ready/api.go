// Package ready waits for what a component of ours needs before it starts.
package ready

import (
	"context"
	"time"

	"k8s.io/client-go/rest"
)

const (
	minPause = 50 * time.Millisecond
	maxPause = 2 * time.Second
	// attempt bounds one request, so that a lost packet doesn't stop the wait.
	attempt = 5 * time.Second
)

// API returns once the API server says that it is ready, or ctx has ended, with ctx's error then.
//
// An informer that is started earlier is refused, by the kernel or for want of RBAC rules, and its reflector backs off: a
// cold start took seconds longer. The pause between two questions grows with the time waited, to a tenth of it.
func API(ctx context.Context, client rest.Interface) error {
	for began := time.Now(); ; {
		actx, cancel := context.WithTimeout(ctx, attempt)
		err := client.Get().AbsPath("/readyz").Do(actx).Error()
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(max(time.Since(began)/10, minPause), maxPause)):
		}
	}
}
