package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

const namespace = "default"

// podStart takes the time from before the API call that creates a pod until a watcher sees it Ready. The image is on
// the node. First pods one by one, then bursts.
func (b *bench) podStart(ctx context.Context) error {
	if err := b.importLoad(ctx); err != nil {
		return err
	}
	one, err := b.startPods(ctx, b.times(30), 1)
	if err != nil {
		return err
	}
	b.report.aim("pod create to Ready, one by one, median", quantile(one, 0.5), "s", atMost, 1)
	b.report.figure("pod create to Ready, one by one, p95", quantile(one, 0.95), "s")
	const burst = 10
	many, err := b.startPods(ctx, b.times(3), burst)
	if err != nil {
		return err
	}
	b.report.figure(fmt.Sprintf("pod create to Ready, %d at once, median", burst), quantile(many, 0.5), "s")
	b.report.figure(fmt.Sprintf("pod create to Ready, %d at once, p95", burst), quantile(many, 0.95), "s")
	return nil
}

// startPods starts so many pods at once, so many times, and returns what each took in seconds.
func (b *bench) startPods(ctx context.Context, rounds, atOnce int) ([]float64, error) {
	var took []float64
	for round := range rounds {
		began := map[string]time.Time{}
		names := []string{}
		for i := range atOnce {
			names = append(names, fmt.Sprintf("start-%d-%d-%d", atOnce, round, i))
		}
		w, err := b.client.CoreV1().Pods(namespace).Watch(ctx, metav1.ListOptions{LabelSelector: "bench=start"})
		if err != nil {
			return nil, err
		}
		defer w.Stop()
		for _, name := range names {
			began[name] = time.Now()
			if _, err := b.client.CoreV1().Pods(namespace).Create(ctx, loadPod(name, "start", "serve"), metav1.CreateOptions{}); err != nil {
				return nil, err
			}
		}
		err = await(ctx, w, func(_ watch.Event, pod *corev1.Pod) (bool, error) {
			is, err := ready(pod)
			if since, waiting := began[pod.Name]; waiting && is {
				took = append(took, time.Since(since).Seconds())
				delete(began, pod.Name)
			}
			return len(began) == 0, err
		})
		if err != nil {
			return nil, fmt.Errorf("pods start: %w", err)
		}
		for _, name := range names {
			if err := b.client.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
				return nil, err
			}
		}
		gone := 0
		err = await(ctx, w, func(e watch.Event, _ *corev1.Pod) (bool, error) {
			if e.Type == watch.Deleted {
				gone++
			}
			return gone == atOnce, nil
		})
		if err != nil {
			return nil, fmt.Errorf("pods end: %w", err)
		}
		w.Stop()
	}
	return took, nil
}

// await reads a watch of pods until done says so or fails.
func await(ctx context.Context, w watch.Interface, done func(watch.Event, *corev1.Pod) (bool, error)) error {
	late := time.After(time.Minute)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			return errors.New("not within a minute")
		case e, open := <-w.ResultChan():
			if !open {
				return errors.New("the watch ended")
			}
			if e.Type == watch.Error {
				return apierrors.FromObject(e.Object)
			}
			if pod, ok := e.Object.(*corev1.Pod); ok {
				if enough, err := done(e, pod); enough || err != nil {
					return err
				}
			}
		}
	}
}

// ready tells whether the pod is Ready. A container that has ended is an error: those of the benchmark don't.
func ready(pod *corev1.Pod) (bool, error) {
	for _, c := range pod.Status.ContainerStatuses {
		for _, s := range []corev1.ContainerState{c.State, c.LastTerminationState} {
			if s.Terminated != nil {
				return false, fmt.Errorf("pod %s: the load program ended with %d (built without CGO_ENABLED=0?): %s", pod.Name, s.Terminated.ExitCode, s.Terminated.Message)
			}
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue, nil
		}
	}
	return false, nil
}

// loadPod is a pod of the load image.
func loadPod(name, label string, args ...string) *corev1.Pod {
	grace := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"bench": label}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{Name: "load", Image: loadImage, ImagePullPolicy: corev1.PullNever, Args: args,
				Ports: []corev1.ContainerPort{{ContainerPort: loadPort}}}},
		},
	}
}
