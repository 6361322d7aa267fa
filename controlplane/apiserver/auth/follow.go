package auth

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/util/filesystem"
	"k8s.io/klog/v2"
)

const (
	// lookEvery is how often a followed file is read where the kernel tells of no change, as on some network file systems.
	lookEvery = time.Minute
	// readyWithin is how long what a changed file asks for has to become ready, such as issuers whose keys must be fetched.
	readyWithin = time.Minute
	// lastsOn is how long what was replaced goes on, for the requests that it was asked about.
	lastsOn = time.Minute
)

// Built is what a configuration file asks for.
type Built[T any] struct {
	Value T
	Ready func() error // nil: at once
}

// File is a configuration file that is followed.
type File[T any] struct {
	Path string
	// Build makes what the file's content asks for; what it starts ends with ctx.
	Build func(ctx context.Context, content []byte) (Built[T], error)
	// Loaded and Failed are told of each content that is taken, and of each that is not.
	Loaded func(content string, first bool)
	Failed func()

	content []byte
	now     atomic.Pointer[T]
	end     context.CancelFunc
}

// Load builds what the file asks for at first.
func (f *File[T]) Load(ctx context.Context) error {
	content, err := os.ReadFile(f.Path)
	if err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	built, err := f.Build(ctx, content)
	if err != nil {
		end()
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	f.take(content, built.Value, end)
	f.Loaded(string(content), true)
	return nil
}

func (f *File[T]) take(content []byte, value T, end context.CancelFunc) {
	f.content, f.end = content, end
	f.now.Store(&value)
}

// Now is what the file asks for at present.
func (f *File[T]) Now() T { return *f.now.Load() }

// Follow builds anew what the file asks for when its content changes, until ctx ends. A content that is wrong, or that is not ready in
// time, changes nothing, and is tried again.
func (f *File[T]) Follow(ctx context.Context) {
	filesystem.WatchUntil(ctx, lookEvery, f.Path, func() {
		if err := f.reload(ctx); err != nil && ctx.Err() == nil {
			f.Failed()
			klog.ErrorS(err, "The file is not followed: what it asked for before goes on", "file", f.Path)
		}
	}, func(err error) {
		klog.ErrorS(err, "Changes of the file are seen within a minute only", "file", f.Path)
	})
}

func (f *File[T]) reload(ctx context.Context) error {
	content, err := os.ReadFile(f.Path)
	if err != nil {
		return err
	}
	if bytes.Equal(content, f.content) {
		return nil
	}
	lives, end := context.WithCancel(ctx)
	built, err := f.Build(lives, content)
	if err == nil && built.Ready != nil {
		err = within(ctx, readyWithin, built.Ready)
	}
	if err != nil {
		end()
		return err
	}
	time.AfterFunc(lastsOn, f.end)
	f.take(content, built.Value, end)
	f.Loaded(string(content), false)
	klog.InfoS("The file was read anew", "file", f.Path)
	return nil
}

// within asks until there is no error, or time is over, and returns the last error.
func within(ctx context.Context, limit time.Duration, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// FollowedAuthenticator asks the authenticator of a followed file.
type FollowedAuthenticator struct{ *File[authenticator.Request] }

// AuthenticateRequest implements authenticator.Request.
func (f FollowedAuthenticator) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	return f.Now().AuthenticateRequest(r)
}

// FollowedAuthorizer asks the authorizer of a followed file.
type FollowedAuthorizer struct{ *File[authorizer.Authorizer] }

// Authorize implements authorizer.Authorizer.
func (f FollowedAuthorizer) Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	return f.Now().Authorize(ctx, a)
}

// ConditionsAwareAuthorize implements authorizer.Authorizer.
func (f FollowedAuthorizer) ConditionsAwareAuthorize(ctx context.Context, a authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return f.Now().ConditionsAwareAuthorize(ctx, a)
}

// EvaluateConditions implements authorizer.Authorizer.
func (f FollowedAuthorizer) EvaluateConditions(ctx context.Context, d authorizer.ConditionsAwareDecision, data authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return f.Now().EvaluateConditions(ctx, d, data)
}
