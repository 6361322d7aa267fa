package podworker

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ensureImage returns the container's image, after pulling it if its policy says so. On failure it returns the
// reason that the container's status shows.
func (w *worker) ensureImage(ctx context.Context, p *corev1.Pod, c *corev1.Container) (*runtimeapi.Image, string, error) {
	spec := &runtimeapi.ImageSpec{Image: c.Image, UserSpecifiedImage: c.Image}
	have, err := w.imageStatus(ctx, spec)
	if err != nil {
		return nil, "ImageInspectError", err
	}
	if have != nil && c.ImagePullPolicy != corev1.PullAlways {
		if w.waiting[c.Name].reason == "" {
			w.k.Recorder.Eventf(p, corev1.EventTypeNormal, "Pulled", "Container image %q already present on machine", c.Image)
		}
		return have, "", nil
	}
	if c.ImagePullPolicy == corev1.PullNever {
		err := fmt.Errorf("container image %q is not present with pull policy of Never", c.Image)
		w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "ErrImageNeverPull", "%v", err)
		return nil, "ErrImageNeverPull", err
	}
	w.k.Recorder.Eventf(p, corev1.EventTypeNormal, "Pulling", "Pulling image %q", c.Image)
	began := time.Now()
	var pullErr error
	for _, auth := range w.pullAuth(ctx, p, c.Image) {
		if _, pullErr = w.k.Images.PullImage(ctx, spec, auth, nil); pullErr == nil {
			break
		}
	}
	if pullErr != nil {
		w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "Failed", "Failed to pull image %q: %v", c.Image, pullErr)
		reason := "ErrImagePull"
		if w.waiting[c.Name].reason == "ErrImagePull" || w.waiting[c.Name].reason == "ImagePullBackOff" {
			reason = "ImagePullBackOff"
		}
		return nil, reason, pullErr
	}
	w.k.Recorder.Eventf(p, corev1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %s", c.Image, time.Since(began).Round(time.Millisecond))
	have, err = w.imageStatus(ctx, spec)
	if err == nil && have == nil {
		err = errors.New("the image is not there after it was pulled")
	}
	return have, "ErrImagePull", err
}

func (w *worker) imageStatus(ctx context.Context, spec *runtimeapi.ImageSpec) (*runtimeapi.Image, error) {
	resp, err := w.k.Images.ImageStatus(ctx, spec, false)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", spec.Image, err)
	}
	return resp.Image, nil
}

// pullAuth lists the credentials to try: those of the pod's imagePullSecrets that name the image's registry, then none.
func (w *worker) pullAuth(ctx context.Context, p *corev1.Pod, image string) []*runtimeapi.AuthConfig {
	var out []*runtimeapi.AuthConfig
	for _, ref := range p.Spec.ImagePullSecrets {
		s, err := w.k.Objects.Secret(ctx, p.UID, p.Namespace, ref.Name)
		if err != nil {
			continue // a missing secret is no reason not to try without it
		}
		out = append(out, credentials(s, image)...)
	}
	return append(out, nil)
}

// credentials reads a .dockerconfigjson.
func credentials(s *corev1.Secret, image string) []*runtimeapi.AuthConfig {
	var cfg struct {
		Auths map[string]struct{ Username, Password, Auth, IdentityToken string }
	}
	if err := json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &cfg); err != nil {
		return nil
	}
	var out []*runtimeapi.AuthConfig
	for server, a := range cfg.Auths {
		host := strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
		if host, _, _ = strings.Cut(host, "/"); !strings.HasPrefix(image, host+"/") {
			continue
		}
		user, password := a.Username, a.Password
		if a.Auth != "" && user == "" {
			if data, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
				user, password, _ = strings.Cut(string(data), ":")
			}
		}
		out = append(out, &runtimeapi.AuthConfig{Username: user, Password: password, IdentityToken: a.IdentityToken, ServerAddress: server})
	}
	return out
}
